// Metal's scalar and vector types. Every operation on 16-bit floats is rounded to 16 bits.
#pragma once
#include "runtime.h"

#include <type_traits>

using uint = unsigned int;
using uchar = unsigned char;
using ushort = unsigned short;
using ulong = unsigned long;

namespace metal {

#ifdef __aarch64__
using native_half = __fp16;
#else
using native_half = _Float16;
#endif

struct HalfFormat {
  static float widen(uint16_t bits) { return __builtin_bit_cast(native_half, bits); }
  static uint16_t narrow(float value) { return __builtin_bit_cast(uint16_t, static_cast<native_half>(value)); }
};

struct BfloatFormat {
  static float widen(uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
  static uint16_t narrow(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;  // NaN stays NaN
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;                 // to nearest, ties to even
  }
};

template <class A> using if_arithmetic = std::enable_if_t<std::is_arithmetic<A>::value>;
template <class A> using if_integral = std::enable_if_t<std::is_integral<A>::value>;

// Widening to float is implicit; narrowing takes a static_cast. Metal demands that of bfloat; here half is as strict,
// so that a kernel that compiles for one 16-bit type compiles for the other.
template <class Format>
struct float16 {
  uint16_t bits;
  float16() = default;
  float16(const float16&) = default;
  float16& operator=(const float16&) = default;
  template <class A, class = if_arithmetic<A>> explicit float16(A a) : bits(Format::narrow(float(a))) {}
  template <class Other, class = std::enable_if_t<!std::is_same<Other, Format>::value>, class = void>
  explicit float16(float16<Other> other) : float16(float(other)) {}
  operator float() const { return Format::widen(bits); }
  template <class I, class = if_integral<I>> float16& operator=(I i) { return *this = float16(i); }
  float16& operator+=(float16 b) { return *this = *this + b; }
  float16& operator-=(float16 b) { return *this = *this - b; }
  float16& operator*=(float16 b) { return *this = *this * b; }
  float16& operator/=(float16 b) { return *this = *this / b; }
  float16 operator-() const { return __builtin_bit_cast(float16, uint16_t(bits ^ 0x8000)); }
};

#define OPERATOR(op)                                                                                              \
  template <class F> float16<F> operator op(float16<F> a, float16<F> b) { return float16<F>(float(a) op float(b)); } \
  template <class F> float operator op(float16<F> a, float b) { return float(a) op b; }                           \
  template <class F> float operator op(float a, float16<F> b) { return a op float(b); }                           \
  template <class F, class I, class = if_integral<I>>                                                             \
  float16<F> operator op(float16<F> a, I b) { return a op float16<F>(b); }                                        \
  template <class F, class I, class = if_integral<I>>                                                             \
  float16<F> operator op(I a, float16<F> b) { return float16<F>(a) op b; }
OPERATOR(+) OPERATOR(-) OPERATOR(*) OPERATOR(/)
#undef OPERATOR

// Vectors have no swizzles: .x .y .z .w and [] only, which CUDA has too.
template <class T, int N> struct vec;

#define INDEX                                   \
  T& operator[](int i) { return (&x)[i]; }      \
  T operator[](int i) const { return (&x)[i]; } \
  vec() = default;
template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  INDEX vec(T a) : x(a), y(a) {}
  vec(T a, T b) : x(a), y(b) {}
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  INDEX vec(T a) : x(a), y(a), z(a) {}
  vec(T a, T b, T c) : x(a), y(b), z(c) {}
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  INDEX vec(T a) : x(a), y(a), z(a), w(a) {}
  vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
};
#undef INDEX

template <class T> struct same { using type = T; };
template <class T> using scalar = typename same<T>::type;  // takes no part in deduction

#define OPERATOR(op)                                                                                           \
  template <class T, int N> vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {                                  \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);                                                        \
    return a;                                                                                                  \
  }                                                                                                            \
  template <class T, int N> vec<T, N> operator op(vec<T, N> a, scalar<T> b) { return a op vec<T, N>(b); }      \
  template <class T, int N> vec<T, N> operator op(scalar<T> a, vec<T, N> b) { return vec<T, N>(a) op b; }      \
  template <class T, int N, class B> vec<T, N>& operator op##=(vec<T, N>& a, B b) { return a = a op b; }
OPERATOR(+) OPERATOR(-) OPERATOR(*) OPERATOR(/)
#undef OPERATOR

template <class T, int N> T dot(vec<T, N> a, vec<T, N> b) {
  T sum = T(a[0] * b[0]);
  for (int i = 1; i < N; i++) sum = T(sum + a[i] * b[i]);
  return sum;
}

template <class To, class From> To as_type(From from) { return __builtin_bit_cast(To, from); }

// ---- limits
template <class T> struct numeric_limits {
  static constexpr bool is_signed = T(-1) < T(0);
  static constexpr T half_range = T(1) << (8 * sizeof(T) - 2);
  static constexpr T max() { return is_signed ? T(half_range - 1 + half_range) : T(-1); }
  static constexpr T min() { return is_signed ? T(-max() - 1) : T(0); }
  static constexpr T lowest() { return min(); }
};
template <> struct numeric_limits<float> {
  static constexpr float max() { return __FLT_MAX__; }
  static constexpr float min() { return __FLT_MIN__; }
  static constexpr float lowest() { return -__FLT_MAX__; }
  static constexpr float epsilon() { return __FLT_EPSILON__; }
  static constexpr float infinity() { return __builtin_inff(); }
  static constexpr float quiet_NaN() { return __builtin_nanf(""); }
};
template <class F> struct numeric_limits<float16<F>> {
  using T = float16<F>;
  static constexpr bool is_half = std::is_same<F, HalfFormat>::value;
  static T of(uint16_t half, uint16_t bfloat) { return __builtin_bit_cast(T, is_half ? half : bfloat); }
  static T max() { return of(0x7bff, 0x7f7f); }
  static T min() { return of(0x0400, 0x0080); }
  static T lowest() { return of(0xfbff, 0xff7f); }
  static T epsilon() { return of(0x1400, 0x3c00); }
  static T infinity() { return of(0x7c00, 0x7f80); }
  static T quiet_NaN() { return of(0x7e00, 0x7fc0); }
};

}  // namespace metal

using half = metal::float16<metal::HalfFormat>;
using bfloat = metal::float16<metal::BfloatFormat>;
using float16_t = half;
using bfloat16_t = bfloat;
using metal::as_type;
inline half operator""h(long double value) { return half(static_cast<float>(value)); }

#define VECTORS(name, T)           \
  using name##2 = metal::vec<T, 2>; \
  using name##3 = metal::vec<T, 3>; \
  using name##4 = metal::vec<T, 4>;
VECTORS(float, float) VECTORS(half, half) VECTORS(bfloat, bfloat)
VECTORS(char, signed char) VECTORS(short, short) VECTORS(int, int) VECTORS(long, long)
VECTORS(uchar, uchar) VECTORS(ushort, ushort) VECTORS(uint, uint) VECTORS(ulong, ulong)
#undef VECTORS
