// The CUDA that the kernels of this package may use, as C++17. The package's cuda.h, which turns their Metal words into
// these, is part of the text; everything else does not compile. Threads of a warp are those of a simdgroup.
#pragma once
#pragma GCC system_header
#include "metal_types.h"

using __half = half;
using __nv_bfloat16 = bfloat;

#define __global__ static
#define __device__
#define __forceinline__ inline

// ---- where a thread is
#define TRIPLE(source) uint3((source).x, (source).y, (source).z)
#define threadIdx TRIPLE(emu::current->position_in_group)
#define blockIdx TRIPLE(emu::current->group)
#define blockDim TRIPLE(emu::group_size)
#define gridDim TRIPLE(emu::group_count)

// ---- what threads do together; cuda.py gives every call its place in the text as first argument
inline void __syncthreads(emu::Site site) {
  emu::threadgroup_wait(site, 1 | 2);  // all memory
}

// Every thread of the mask must be there. What it reads of others is no access of the kernel's.
template <class T>
__attribute__((no_sanitize("thread"), noinline)) T __shfl_xor_sync(emu::Site site, unsigned mask, T value, int distance) {
  static_assert(sizeof(T) == 4, "only 32 bits are exchanged here");
  const unsigned lanes = emu::current->simdgroup->lanes;
  if (mask != 0xffffffffu || lanes != 32) {
    emu::fail(nullptr, "__shfl_xor_sync (%s line %d) in a warp of %u threads with the mask %x", site.file, site.line,
              lanes, mask);
  }
  return static_cast<const T*>(emu::exchange(site, "__shfl_xor_sync", &value, sizeof(T)))[emu::current->lane ^ distance];
}

// ---- numbers
inline float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
inline float expf(float x) { return __builtin_expf(x); }
inline float logf(float x) { return __builtin_logf(x); }
inline float fmaxf(float x, float y) { return x != x ? y : y != y ? x : x < y ? y : x; }
inline float fminf(float x, float y) { return x != x ? y : y != y ? x : y < x ? y : x; }

#pragma GCC poison double std new delete throw try catch dynamic_cast typeid virtual goto printf malloc free
