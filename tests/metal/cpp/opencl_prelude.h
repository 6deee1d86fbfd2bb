// The same Metal for libclang, as C++ for OpenCL: declarations only. Its address spaces are Metal's under other names,
// and a pointer without one is an error there as it is in Metal. bfloat stands in as half.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

#define device __global
#define threadgroup __local
#define constant __constant
#define thread __private
#define METAL_FUNC inline
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define M_PI_F 3.14159265358979323846f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uchar, uint8_t;
typedef unsigned short ushort, uint16_t;
typedef unsigned int uint, uint32_t;
typedef unsigned long ulong, uint64_t, size_t;
typedef half float16_t, bfloat, bfloat16_t;

namespace metal {
template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));
}
#define VECTOR(T, N)             \
  typedef metal::vec<T, N> T##N; \
  template <class... Values> T##N make_##T##N(Values...);
#define VECTORS(T) VECTOR(T, 2) VECTOR(T, 3) VECTOR(T, 4)
VECTORS(float) VECTORS(half) VECTORS(bfloat) VECTORS(char) VECTORS(short) VECTORS(int) VECTORS(long)
VECTORS(uchar) VECTORS(ushort) VECTORS(uint) VECTORS(ulong)
#undef VECTORS
#undef VECTOR

namespace metal {

#define F1(name) template <class T> T name(T);
#define F2(name) template <class T> T name(T, T);
#define F3(name) template <class T> T name(T, T, T);
#define FUNCTIONS                                                                                                      \
  F1(exp) F1(exp2) F1(exp10) F1(log) F1(log2) F1(log10) F1(sqrt) F1(rsqrt) F1(sin) F1(cos) F1(tan) F1(asin) F1(acos)   \
  F1(atan) F1(sinh) F1(cosh) F1(tanh) F1(floor) F1(ceil) F1(trunc) F1(round) F1(rint) F1(fabs) F1(sign) F1(fract)      \
  F2(pow) F2(powr) F2(fmod) F2(atan2) F2(copysign)
FUNCTIONS
namespace fast { FUNCTIONS }
namespace precise { FUNCTIONS }
F1(abs) F2(max) F2(min) F2(fmax) F2(fmin) F3(clamp) F3(fma) F3(mix)
template <class T> T select(T, T, bool);
template <class T> T ldexp(T, int);
template <class T> bool isnan(T);
template <class T> bool isinf(T);
template <class T> bool isfinite(T);
template <class T, int N> T dot(vec<T, N>, vec<T, N>);
uint popcount(uint);
uint clz(uint);
uint ctz(uint);

template <class T> struct numeric_limits {
  static T max();
  static T min();
  static T lowest();
  static T epsilon();
  static T infinity();
  static T quiet_NaN();
};

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define SHUFFLE(name) template <class T> T name(T, ushort);
F1(simd_sum) F1(simd_product) F1(simd_max) F1(simd_min) F1(simd_and) F1(simd_or) F1(simd_xor)
F1(simd_prefix_inclusive_sum) F1(simd_prefix_exclusive_sum) F1(simd_broadcast_first)
SHUFFLE(simd_shuffle) SHUFFLE(simd_broadcast) SHUFFLE(simd_shuffle_xor) SHUFFLE(simd_shuffle_up)
SHUFFLE(simd_shuffle_down) SHUFFLE(simd_shuffle_rotate_up) SHUFFLE(simd_shuffle_rotate_down)
template <class T> T simd_shuffle_and_fill_up(T, T, ushort);
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();
#undef SHUFFLE
#undef FUNCTIONS
#undef F1
#undef F2
#undef F3

template <class T> struct atomic { T value; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
enum memory_order { memory_order_relaxed };
template <class T> struct same { typedef T type; };
#define ATOMIC(name)                                                                                            \
  template <class T> T atomic_##name##_explicit(__global atomic<T>*, typename same<T>::type, memory_order);     \
  template <class T> T atomic_##name##_explicit(__local atomic<T>*, typename same<T>::type, memory_order);
ATOMIC(fetch_add) ATOMIC(fetch_sub) ATOMIC(fetch_max) ATOMIC(fetch_min) ATOMIC(fetch_or) ATOMIC(fetch_and)
ATOMIC(fetch_xor) ATOMIC(exchange) ATOMIC(store)
#undef ATOMIC
template <class T> T atomic_load_explicit(const __global atomic<T>*, memory_order);
template <class T> T atomic_load_explicit(const __local atomic<T>*, memory_order);

}  // namespace metal
using namespace metal;

template <class To, class From> To as_type(From);
template <class T, class U> T ceildiv(T, U);
template <class T> struct Limits {
  static constexpr __constant T max = T(0), min = T(0), finite_max = T(0), finite_min = T(0);
};
template <class I = int64_t> I elem_to_loc(I, const __constant int*, const __constant int64_t*, int);
template <class I = int64_t> I elem_to_loc(I, const __global int*, const __global int64_t*, int);
