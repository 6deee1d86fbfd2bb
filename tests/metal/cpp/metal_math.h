// Metal's mathematical functions, each in float and rounded to the argument's type. Like Metal's, the functions of two
// or three values want them all of one type: max(x, 0) of a float x does not compile.
#pragma once
#include "metal_types.h"

namespace metal {

template <class T> struct is_float16 : std::false_type {};
template <class F> struct is_float16<float16<F>> : std::true_type {};
template <class T> using floating = std::conditional_t<is_float16<T>::value, T, float>;  // the result for an argument T

#define FUNCTION(name, expression)                                                              \
  template <class T> floating<T> name(T value) {                                                \
    const float x = float(value);                                                               \
    return floating<T>(expression);                                                             \
  }                                                                                             \
  template <class T, int N> vec<T, N> name(vec<T, N> v) {                                       \
    for (int i = 0; i < N; i++) v[i] = T(name(v[i]));                                           \
    return v;                                                                                   \
  }
#define FUNCTION2(name, expression)                                                             \
  template <class T> floating<T> name(T first, T second) {                                      \
    const float x = float(first), y = float(second);                                            \
    return floating<T>(expression);                                                             \
  }
#define FUNCTIONS                                                                                             \
  FUNCTION(exp, __builtin_expf(x)) FUNCTION(exp2, __builtin_exp2f(x)) FUNCTION(exp10, __builtin_powf(10, x))  \
  FUNCTION(log, __builtin_logf(x)) FUNCTION(log2, __builtin_log2f(x)) FUNCTION(log10, __builtin_log10f(x))    \
  FUNCTION(sqrt, __builtin_sqrtf(x)) FUNCTION(rsqrt, 1 / __builtin_sqrtf(x))                                  \
  FUNCTION(sin, __builtin_sinf(x)) FUNCTION(cos, __builtin_cosf(x)) FUNCTION(tan, __builtin_tanf(x))          \
  FUNCTION(asin, __builtin_asinf(x)) FUNCTION(acos, __builtin_acosf(x)) FUNCTION(atan, __builtin_atanf(x))    \
  FUNCTION(sinh, __builtin_sinhf(x)) FUNCTION(cosh, __builtin_coshf(x)) FUNCTION(tanh, __builtin_tanhf(x))    \
  FUNCTION(floor, __builtin_floorf(x)) FUNCTION(ceil, __builtin_ceilf(x)) FUNCTION(trunc, __builtin_truncf(x)) \
  FUNCTION(round, __builtin_roundf(x)) FUNCTION(rint, __builtin_rintf(x)) FUNCTION(fabs, __builtin_fabsf(x))  \
  FUNCTION(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x) FUNCTION(fract, x - __builtin_floorf(x))                   \
  FUNCTION2(pow, __builtin_powf(x, y)) FUNCTION2(powr, __builtin_powf(x, y)) FUNCTION2(fmod, __builtin_fmodf(x, y)) \
  FUNCTION2(atan2, __builtin_atan2f(x, y)) FUNCTION2(copysign, __builtin_copysignf(x, y))
FUNCTIONS
namespace fast { FUNCTIONS }
namespace precise { FUNCTIONS }
#undef FUNCTIONS
#undef FUNCTION2
#undef FUNCTION

template <class T> T abs(T x) { return x < T(0) ? T(-x) : x == T(0) ? T(0) : x; }
// As in Metal, the other value wins over a NaN.
template <class T> T max(T x, T y) { return x != x ? y : y != y ? x : x < y ? y : x; }
template <class T> T min(T x, T y) { return x != x ? y : y != y ? x : y < x ? y : x; }
template <class T> T fmax(T x, T y) { return max(x, y); }
template <class T> T fmin(T x, T y) { return min(x, y); }
template <class T> T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T> T fma(T x, T y, T z) { return T(__builtin_fmaf(float(x), float(y), float(z))); }
template <class T> T mix(T x, T y, T t) { return T(x + (y - x) * t); }
template <class T> T select(T no, T yes, bool which) { return which ? yes : no; }
template <class T> T ldexp(T x, int k) { return T(__builtin_ldexpf(float(x), k)); }
template <class T> bool isnan(T x) { return __builtin_isnan(float(x)); }
template <class T> bool isinf(T x) { return __builtin_isinf(float(x)); }
template <class T> bool isfinite(T x) { return __builtin_isfinite(float(x)); }
inline uint popcount(uint x) { return __builtin_popcount(x); }
inline uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }

}  // namespace metal

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define M_PI_F 3.14159265358979323846f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
