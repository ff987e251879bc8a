// Vectors, element types and elementary functions for the instruction set being compiled for.
//
// Written with the compiler's generic vectors: the same source gives NEON, SSE2, AVX2 and AVX-512.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
// GCC 12 finds its own headers' undefined vectors uninitialised; can go with GCC 13.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef VLLM_ISA
#error "VLLM_ISA must name the namespace of this instruction set"
#endif

namespace vllm::cpu::VLLM_ISA {

#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
#elif defined(__AVX2__)
inline constexpr int kWidth = 8;
#else
inline constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kWidth * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kWidth * 2)));

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename To, typename From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

inline Vec splat(float x) { return x - Vec{}; }

inline Vec vmax(Vec a, Vec b) { return a > b ? a : b; }
inline Vec vmin(Vec a, Vec b) { return a < b ? a : b; }

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// bfloat16 as float32.
inline Vec widened(HalfVec halves) {
  return bit_cast<Vec>(__builtin_convertvector(halves, UintVec) << 16);
}

inline Vec load(const BFloat16* p) {
  HalfVec halves;
  __builtin_memcpy(&halves, p, sizeof(halves));
  return widened(halves);
}

#if defined(__AVX512F__)
inline Vec load(const Float16* p) {
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#else
inline Vec load(const Float16* p) {
  HalfVec half;
  __builtin_memcpy(&half, p, sizeof(half));
  UintVec bits = __builtin_convertvector(half, UintVec);
  UintVec magnitude = (bits & 0x7fffu) << 13;
  // The product moves the exponent's bias from 15 to 127 and makes subnormals exact on the way.
  Vec finite = bit_cast<Vec>(magnitude) * 0x1p112f;
  UintVec special = bit_cast<UintVec>(finite) | 0x7f800000u;  // infinity and NaN
  UintVec value = magnitude >= (0x7c00u << 13) ? special : bit_cast<UintVec>(finite);
  return bit_cast<Vec>(value | ((bits & 0x8000u) << 16));
}
#endif

inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }

// The upper halves of float32 numbers, rounded to nearest, ties to even.
inline HalfVec rounded_halves(Vec v) {
#if defined(__AVX512BF16__)
  // The instruction takes subnormal numbers for zero.
  constexpr int kSubnormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, kSubnormal) == 0, 1)) {
    return (HalfVec)_mm512_cvtneps_pbh((__m512)v);
  }
#endif
  UintVec bits = bit_cast<UintVec>(v);
  UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = v != v ? UintVec{} + 0x7fc0u : rounded;
  return __builtin_convertvector(rounded, HalfVec);
}

inline void store(BFloat16* p, Vec v) {
  const HalfVec halves = rounded_halves(v);
  __builtin_memcpy(p, &halves, sizeof(halves));
}

#if defined(__AVX512F__)
inline void store(Float16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, 0));  // to nearest
}
#else
inline void store(Float16* p, Vec v) {
  UintVec bits = bit_cast<UintVec>(v);
  UintVec magnitude = bits & 0x7fffffffu;
  // Below 2^-14 adding 1/2 lets the adder round to multiples of 2^-24, a subnormal's unit.
  UintVec subnormal = bit_cast<UintVec>(bit_cast<Vec>(magnitude) + 0.5f) - 0x3f000000u;
  UintVec normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  UintVec value = magnitude < 0x38800000u ? subnormal : normal;
  value = magnitude >= 0x47800000u ? UintVec{} + 0x7c00u : value;
  value = magnitude > 0x7f800000u ? UintVec{} + 0x7e00u : value;
  HalfVec half = __builtin_convertvector(value | ((bits >> 16) & 0x8000u), HalfVec);
  __builtin_memcpy(p, &half, sizeof(half));
}
#endif

// The first n < kWidth elements; the others read as zero.
template <typename T>
inline Vec load_first(const T* p, int n) {
  T buffer[kWidth] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <typename T>
inline void store_first(T* p, Vec v, int n) {
  T buffer[kWidth];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

// x as it reads back after being stored as T.
template <typename T>
inline Vec rounded_to(Vec x) {
  T buffer[kWidth];
  store(buffer, x);
  return load(buffer);
}

template <>
inline Vec rounded_to<float>(Vec x) {
  return x;
}

template <>
inline Vec rounded_to<BFloat16>(Vec x) {
  return widened(rounded_halves(x));
}

template <typename T>
inline float load_one(const T* p) {
  return load_first(p, 1)[0];
}

template <>
inline float load_one<float>(const float* p) {
  return *p;
}

template <>
inline float load_one<BFloat16>(const BFloat16* p) {
  return bit_cast<float>(uint32_t{p->bits} << 16);
}

// By halves: a chain of additions would take as long as many a row.
inline float sum(Vec v) {
#if defined(__AVX512F__)
  const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(bit_cast<__m512d>(v), 1));
  const __m256 eight = _mm512_castps512_ps256((__m512)v) + upper;
  const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
#else
  float lanes[kWidth];
  store(lanes, v);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
#endif
}

// Of lanes that are not NaN.
inline float greatest_of(Vec v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i)
      lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
  }
  return lanes[0];
}

// A bit for each lane that is set.
inline uint32_t bits_of(IntVec mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(bit_cast<__m256>(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(bit_cast<__m128>(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
#endif
}

// Calls body(offset, count) for all of [0, width): count is kWidth but for the last.
template <typename Body>
inline void for_each_vector(int64_t width, Body body) {
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) body(i, kWidth);
  if (i < width) body(i, static_cast<int>(width - i));
}

template <typename T>
inline Vec load_n(const T* p, int n) {
  return n == kWidth ? load(p) : load_first(p, n);
}

template <typename T>
inline void store_n(T* p, Vec v, int n) {
  if (n == kWidth) {
    store(p, v);
  } else {
    store_first(p, v, n);
  }
}

// exp(x) = power * (1 + tail), |tail| < 0.42: the two parts that exp and expm1 put together.
struct ExpParts {
  Vec tail;
  Vec power_1;  // power = power_1 * power_2: it may itself be out of range
  Vec power_2;
};

inline ExpParts exp_parts(Vec x) {
  // Beyond these bounds the result is zero or infinite in float32.
  x = vmin(vmax(x, splat(-105.0f)), splat(89.0f));
  // Adding 1.5 * 2^23 rounds to the nearest integer.
  Vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  // log(2) in two parts: the first has trailing zeros, so that its product with n is exact.
  Vec r = x - n * 0x1.62e4p-1f;
  r = r - n * 1.42860677e-6f;
  // Taylor series to r^7 / 7!: what is left out is below 6e-9 for |r| <= log(2) / 2.
  Vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r;
  IntVec exponent = __builtin_convertvector(n, IntVec);
  IntVec half = exponent >> 1;
  IntVec first = (half + 127) << 23;
  IntVec second = (exponent - half + 127) << 23;
  return {p, bit_cast<Vec>(first), bit_cast<Vec>(second)};
}

inline Vec vexp(Vec x) {
  ExpParts parts = exp_parts(x);
  return ((parts.tail + 1.0f) * parts.power_1) * parts.power_2;
}

// Accurate near zero, where 1 - 2 / (exp(2x) + 1) is not.
inline Vec vtanh(Vec x) {
  ExpParts parts = exp_parts(vmin(vmax(2.0f * x, splat(-40.0f)), splat(40.0f)));
  Vec power = parts.power_1 * parts.power_2;
  Vec expm1 = power * parts.tail + (power - 1.0f);
  return expm1 / (expm1 + 2.0f);
}

}  // namespace vllm::cpu::VLLM_ISA
