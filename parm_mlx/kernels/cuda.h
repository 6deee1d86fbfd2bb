// The Metal words that the kernels of this folder use, as CUDA. MLX puts it behind its own headers and before the
// kernel (mlx/backend/cuda/custom_kernel.cpp), so that one text serves both.
// A word that is not here does not compile, and the tests compile every kernel.

#define METAL_FUNC __device__ __forceinline__
#define threadgroup __shared__  // of variables; a pointer to one is deduced, never written down
#define constant
#define thread

#define thread_position_in_threadgroup threadIdx
#define threadgroup_position_in_grid blockIdx
#define threadgroups_per_grid gridDim
#define thread_position_in_grid \
  (uint3{blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, \
         blockIdx.z * blockDim.z + threadIdx.z})
#define thread_index_in_threadgroup (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))
#define thread_index_in_simdgroup (thread_index_in_threadgroup & 31u)
#define simdgroup_index_in_threadgroup (thread_index_in_threadgroup >> 5)

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

enum class mem_flags { mem_threadgroup = 2 };

METAL_FUNC void threadgroup_barrier(mem_flags) {
  __syncthreads();
}

// All 32 threads of a warp come here, as Metal's rules for uniform control flow demand.
METAL_FUNC float simd_sum(float value) {
  for (int distance = 1; distance < 32; distance *= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

METAL_FUNC float simd_max(float value) {
  for (int distance = 1; distance < 32; distance *= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

namespace metal {

METAL_FUNC float exp(float x) {
  return expf(x);
}

METAL_FUNC float log(float x) {
  return logf(x);
}

METAL_FUNC float max(float x, float y) {
  return fmaxf(x, y);
}

METAL_FUNC int min(int x, int y) {
  return x < y ? x : y;
}

}  // namespace metal
