// What g++ calls in code compiled with -fsanitize: before every access to memory (thread) and where arithmetic or an
// index goes wrong (the rest). The names are those of its own runtime libraries, whose place we take.
#include "internal.h"

namespace emu {

void atomic_access(const void* address, unsigned bytes, Atomic kind, const void* caller) {
  const Kind kinds[] = {ATOMIC_LOAD, ATOMIC_STORE, ATOMIC_UPDATE};
  if (emulator_checked) access(static_cast<const char*>(address), bytes, kinds[int(kind)], caller);
}

}  // namespace emu

using namespace emu;

extern "C" {

#define CALLER __builtin_return_address(0)
#define ACCESS(n)                                                                                \
  void __tsan_read##n(void* p) { access(static_cast<char*>(p), n, READ, CALLER); }               \
  void __tsan_write##n(void* p) { access(static_cast<char*>(p), n, WRITE, CALLER); }             \
  void __tsan_unaligned_read##n(void* p) { access(static_cast<char*>(p), n, READ, CALLER); }     \
  void __tsan_unaligned_write##n(void* p) { access(static_cast<char*>(p), n, WRITE, CALLER); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { access(static_cast<char*>(p), bytes, READ, CALLER); }
void __tsan_write_range(void* p, size_t bytes) { access(static_cast<char*>(p), bytes, WRITE, CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// They get further arguments, which are not needed: the line comes from the caller's address.
#define PROBLEM(name, text) \
  void __ubsan_handle_##name() { fail(CALLER, text); }
PROBLEM(out_of_bounds, "index outside a local or threadgroup array")
PROBLEM(type_mismatch_v1, "an address is not a multiple of what its type demands")
PROBLEM(add_overflow, "integer overflow of +")
PROBLEM(sub_overflow, "integer overflow of -")
PROBLEM(mul_overflow, "integer overflow of *")
PROBLEM(negate_overflow, "integer overflow of a negation")
PROBLEM(divrem_overflow, "division by zero or overflow of an integer division")
PROBLEM(shift_out_of_bounds, "shift by a negative number or by more than the bits there are")
PROBLEM(float_cast_overflow, "a float does not fit into the integer it is cast to")

}
