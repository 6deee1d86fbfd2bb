// What a compiled kernel and its Metal functions may ask of the runtime. One fiber runs one Metal thread.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

// Where a barrier or SIMD function stands in the kernel's text. Identity matters: lanes must meet at the same one.
struct Site {
  const char* file;  // "body" or "header"
  int line, column;
};
constexpr Site at(const char* file, int line, int column) { return {file, line, column}; }

struct Triple {
  unsigned x, y, z;
  unsigned product() const { return x * y * z; }
};

enum Space { THREADGROUP, DEVICE, SPACES };

struct Simdgroup {
  unsigned lanes;
  unsigned epoch[SPACES];                // grows with every simdgroup_barrier on that memory
  alignas(16) char values[2][32 * 16];   // what the lanes exchange; two, so that a fast lane spoils nothing
};

struct Thread {
  enum State { RUNNING, AT_SIMD_FUNCTION, AT_BARRIER, ENDED };
  State state;
  Triple position_in_grid, position_in_group, group;
  unsigned index, lane, simdgroup_index;
  Simdgroup* simdgroup;
  unsigned exchanges;     // SIMD functions so far; its parity picks the half of Simdgroup::values
  const char* operation;  // the barrier or SIMD function at which it waits
  Site site;
  int flags;              // mem_flags of that barrier
  char* stack;
};

extern Thread* current;  // the running thread, null outside a kernel
extern Triple grid, full_group, group_size, group_count;  // group_size is smaller than full_group at the grid's end

// The lanes' values of `size` bytes each, once every lane of the simdgroup has come here.
const void* exchange(Site site, const char* operation, const void* value, size_t size);
void simdgroup_wait(Site site, int flags);
void threadgroup_wait(Site site, int flags);

enum class Atomic { LOAD, STORE, UPDATE };
void atomic_access(const void* address, unsigned bytes, Atomic kind, const void* caller);

// A variable in threadgroup memory; what else is in its section nobody may touch.
void threadgroup_variable(const void* begin, size_t bytes, const char* name);

[[noreturn]] void fail(const void* caller, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emu
