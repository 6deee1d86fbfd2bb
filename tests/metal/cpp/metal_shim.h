// The Metal that kernels made by mx.fast.metal_kernel may use, as C++17. Everything else does not compile.
#pragma once
#pragma GCC system_header
#include "metal_threads.h"

using namespace metal;

// ---- what MLX puts before every kernel on a Mac
template <typename T, typename U> inline T ceildiv(T n, U m) { return (n + m - 1) / m; }

template <typename I = int64_t>
I elem_to_loc(I element, const int* shape, const int64_t* strides, int ndim) {
  I location = 0;
  for (int i = ndim - 1; i >= 0 && element > 0; i--) {
    location += (element % shape[i]) * I(strides[i]);
    element /= shape[i];
  }
  return location;
}

template <class T> struct Limits {
  static constexpr bool finite_only = std::is_integral<T>::value;
  static inline const T finite_max = numeric_limits<T>::max();
  static inline const T finite_min = numeric_limits<T>::lowest();
  static inline const T max = greatest<T>();
  static inline const T min = least<T>();
};

// ---- address spaces: source.py treats `threadgroup`; the lint in lint.py checks them all
#define device
#define constant
#define thread
#define METAL_FUNC inline

// ---- what Metal has not
#pragma GCC poison double std new delete throw try catch dynamic_cast typeid virtual goto printf malloc free
