// What the threads of a threadgroup do together. source.py gives every call its place in the text as first argument.
#pragma once
#include "metal_math.h"

namespace metal {

using emu::Site;

// These read what other lanes wrote, which is no access of the kernel's.
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline void threadgroup_barrier(Site site, mem_flags flags) { emu::threadgroup_wait(site, int(flags)); }
inline void simdgroup_barrier(Site site, mem_flags flags) { emu::simdgroup_wait(site, int(flags)); }

template <class T> const T* exchange(Site site, const char* name, T value) {
  static_assert(sizeof(T) <= 16, "the value of a SIMD function is too large");
  return static_cast<const T*>(emu::exchange(site, name, &value, sizeof(T)));
}
inline unsigned lane() { return emu::current->lane; }
inline unsigned lanes() { return emu::current->simdgroup->lanes; }

// ---- reductions, in the order of a butterfly over distances 1, 2, 4, 8, 16
#define REDUCTION(name, identity, combined)                                               \
  template <class T> UNWATCHED T name(Site site, T value) {                               \
    const T* values = exchange(site, #name, value);                                       \
    T t[32];                                                                              \
    for (unsigned i = 0; i < 32; i++) t[i] = i < lanes() ? values[i] : T(identity);       \
    for (unsigned k = 1; k < 32; k *= 2) {                                                \
      for (unsigned i = 0; i < 32; i += 2 * k) {                                          \
        const T a = t[i], b = t[i + k];                                                   \
        t[i] = T(combined);                                                               \
      }                                                                                   \
    }                                                                                     \
    return t[0];                                                                          \
  }
template <class T> T greatest() {
  if constexpr (std::is_integral<T>::value) return numeric_limits<T>::max();
  else return T(INFINITY);
}
template <class T> T least() {
  if constexpr (std::is_integral<T>::value) return numeric_limits<T>::lowest();
  else return T(-INFINITY);
}
REDUCTION(simd_sum, 0, a + b)
REDUCTION(simd_product, 1, a * b)
REDUCTION(simd_max, least<T>(), max(a, b))
REDUCTION(simd_min, greatest<T>(), min(a, b))
REDUCTION(simd_and, ~T(0), a & b)
REDUCTION(simd_or, 0, a | b)
REDUCTION(simd_xor, 0, a ^ b)
#undef REDUCTION

#define SCAN(name, first, last)                                                           \
  template <class T> UNWATCHED T name(Site site, T value) {                               \
    const T* values = exchange(site, #name, value);                                       \
    T sum = first;                                                                        \
    for (unsigned i = 0; i < last; i++) sum = T(sum + values[i]);                         \
    return sum;                                                                           \
  }
SCAN(simd_prefix_inclusive_sum, T(0), lane() + 1)
SCAN(simd_prefix_exclusive_sum, T(0), lane())
#undef SCAN

// ---- reading another lane
template <class T> UNWATCHED T read_lane(Site site, const char* name, const T* values, unsigned from) {
  if (from >= lanes()) {
    emu::fail(nullptr, "%s (%s line %d) reads lane %u of a simdgroup of %u", name, site.file, site.line, from, lanes());
  }
  return values[from];
}
#define SHUFFLE(name, from)                                                               \
  template <class T> UNWATCHED T name(Site site, T value, ushort argument) {              \
    return read_lane(site, #name, exchange(site, #name, value), from);                    \
  }
SHUFFLE(simd_shuffle, argument)
SHUFFLE(simd_broadcast, argument)
SHUFFLE(simd_shuffle_xor, lane() ^ argument)
SHUFFLE(simd_shuffle_rotate_down, (lane() + argument) % 32)
SHUFFLE(simd_shuffle_rotate_up, (lane() - argument) % 32)
#undef SHUFFLE

// Beyond the last lane Metal's result is undefined: bytes that are NaN to whoever uses them.
template <class T> T undefined() {
  T t;
  __builtin_memset(static_cast<void*>(&t), 0xff, sizeof t);
  return t;
}
#define SHIFT(name, from)                                                                 \
  template <class T> UNWATCHED T name(Site site, T value, ushort argument) {              \
    const T* values = exchange(site, #name, value);                                       \
    const unsigned other = from;                                                          \
    return other < lanes() ? values[other] : undefined<T>();                              \
  }
SHIFT(simd_shuffle_down, lane() + argument)
SHIFT(simd_shuffle_up, lane() - argument)
#undef SHIFT

template <class T> UNWATCHED T simd_shuffle_and_fill_up(Site site, T value, T filling, ushort argument) {
  const T* values = exchange(site, "simd_shuffle_and_fill_up", value);
  const T mine = values[lane() >= argument ? lane() - argument : 0];  // values last until the exchange after the next
  const T* fillings = exchange(site, "simd_shuffle_and_fill_up", filling);
  return lane() >= argument ? mine : fillings[32 + lane() - argument];
}
template <class T> UNWATCHED T simd_broadcast_first(Site site, T value) {
  return exchange(site, "simd_broadcast_first", value)[0];
}
inline UNWATCHED ulong ballot(Site site, const char* name, bool mine) {
  const bool* values = exchange(site, name, mine);
  ulong votes = 0;
  for (unsigned i = 0; i < lanes(); i++) votes |= ulong(values[i]) << i;
  return votes;
}
inline bool simd_any(Site site, bool mine) { return ballot(site, "simd_any", mine) != 0; }
inline bool simd_all(Site site, bool mine) { return ballot(site, "simd_all", !mine) == 0; }
inline bool simd_is_first() { return lane() == 0; }

// ---- atomics: fibers are never interrupted, so that plain operations are atomic
template <class T> struct atomic { T value; };
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_float = atomic<float>;
enum memory_order { memory_order_relaxed };
#define CALLER __builtin_return_address(0)
#define ATOMIC(name, replacement)                                                                         \
  template <class T> UNWATCHED T atomic_##name##_explicit(atomic<T>* p, scalar<T> value, memory_order) {  \
    emu::atomic_access(p, sizeof(T), emu::Atomic::UPDATE, CALLER);                                        \
    const T old = p->value;                                                                               \
    p->value = T(replacement);                                                                            \
    return old;                                                                                           \
  }
ATOMIC(fetch_add, old + value)
ATOMIC(fetch_sub, old - value)
ATOMIC(fetch_max, max(old, value))
ATOMIC(fetch_min, min(old, value))
ATOMIC(fetch_or, old | value)
ATOMIC(fetch_and, old & value)
ATOMIC(fetch_xor, old ^ value)
ATOMIC(exchange, value)
#undef ATOMIC
template <class T> UNWATCHED void atomic_store_explicit(atomic<T>* p, scalar<T> value, memory_order) {
  emu::atomic_access(p, sizeof(T), emu::Atomic::STORE, CALLER);
  p->value = value;
}
template <class T> UNWATCHED T atomic_load_explicit(const atomic<T>* p, memory_order) {
  emu::atomic_access(p, sizeof(T), emu::Atomic::LOAD, CALLER);
  return p->value;
}
#undef CALLER
#undef UNWATCHED

}  // namespace metal
