// Operations on the single lanes of vectors.
#pragma once

#include <algorithm>
#include <utility>

#include "core/dtypes.h"
#include "cpu/vec.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

#if defined(__AVX512F__)
// Lanes below count >= 0, as the instructions of masks want them.
inline __mmask16 lanes_below(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1u << count) - 1);
}
#elif defined(__AVX2__)
inline __m256i lanes_below(int64_t count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::min<int64_t>(count, 8))),
                            lanes);
}
#endif

// The first `count` lanes, none to all; `rest` in the others.
template <typename T>
inline Vec<T> load_up_to(const T* from, int64_t count, T rest = 0) {
  if (count >= kLanes<T>) return load(from);
  T lanes[kLanes<T>];
  std::fill_n(lanes, kLanes<T>, rest);
  std::copy_n(from, count, lanes);
  return load(lanes);
}

#if defined(__AVX512F__)
template <>
inline Vec<float> load_up_to<float>(const float* from, int64_t count, float rest) {
  return (Vec<float>)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), lanes_below(count), from);
}
#elif defined(__AVX2__)
template <>
inline Vec<float> load_up_to<float>(const float* from, int64_t count, float rest) {
  const __m256i mask = lanes_below(count);
  return (Vec<float>)_mm256_blendv_ps(_mm256_set1_ps(rest), _mm256_maskload_ps(from, mask),
                                      _mm256_castsi256_ps(mask));
}
#endif

// A size known to the compiler makes the copy one instruction.
template <typename Half>
inline void copy_up_to(const Half* from, int64_t count, Half* to) {
  if (count >= kLanes<float>) {
    std::memcpy(to, from, kLanes<float> * sizeof(Half));
  } else {
    std::memcpy(to, from, count * sizeof(Half));
  }
}

typedef uint16_t Halves __attribute__((vector_size(kLanes<float> * sizeof(uint16_t))));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

inline Vec<float> load_up_to(const bfloat16* from, int64_t count) {
  bfloat16 lanes[kLanes<float>] = {};
  copy_up_to(from, count, lanes);
  Halves halves;
  std::memcpy(&halves, lanes, sizeof(halves));
  return (Vec<float>)(__builtin_convertvector(halves, Words) << 16);
}

inline Vec<float> load_up_to(const float16* from, int64_t count) {
  constexpr int V = kLanes<float>;
  float16 halves[V] = {};
  copy_up_to(from, count, halves);
#if defined(__AVX512F__)
  __m256i bits;
  std::memcpy(&bits, halves, sizeof(bits));
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xFFFF, bits);
#else
  float lanes[V];
  for (int i = 0; i < V; ++i) lanes[i] = halves[i];
  return load(lanes);
#endif
}

template <typename T>
inline void store_up_to(T* to, int64_t count, Vec<T> v) {
  if (count >= kLanes<T>) return store(to, v);
  T lanes[kLanes<T>];
  store(lanes, v);
  std::copy_n(lanes, count, to);
}
#if defined(__AVX512F__)
template <>
inline void store_up_to<float>(float* to, int64_t count, Vec<float> v) {
  _mm512_mask_storeu_ps(to, lanes_below(count), (__m512)v);
}
#elif defined(__AVX2__)
template <>
inline void store_up_to<float>(float* to, int64_t count, Vec<float> v) {
  _mm256_maskstore_ps(to, lanes_below(count), (__m256)v);
}
#endif

// Rounded to nearest even.
inline void store_up_to(bfloat16* to, int64_t count, Vec<float> v) {
  const Words words = (Words)v;
  const Words rounded = words + 0x7fffu + (words >> 16 & 1u);
  const Halves halves =
      __builtin_convertvector((v == v ? rounded : words | 0x400000u) >> 16, Halves);
  bfloat16 lanes[kLanes<float>];
  std::memcpy(lanes, &halves, sizeof(halves));
  copy_up_to(lanes, count, to);
}

inline void store_up_to(float16* to, int64_t count, Vec<float> v) {
  constexpr int V = kLanes<float>;
  float16 halves[V];
#if defined(__AVX512F__)
  const __m256i bits = _mm512_maskz_cvtps_ph(0xFFFF, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(halves, &bits, sizeof(bits));
#else
  float lanes[V];
  store(lanes, v);
  for (int i = 0; i < V; ++i) halves[i] = float16(lanes[i]);
#endif
  copy_up_to(halves, count, to);
}

// Bit i tells whether lane i is not zero; NaN is not.
template <typename T>
inline uint32_t nonzero_bits(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<T>; ++i) bits |= uint32_t(lanes[i] != 0) << i;
  return bits;
}
#if defined(__AVX512F__)
template <>
inline uint32_t nonzero_bits<float>(Vec<float> v) {
  return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
}
template <>
inline uint32_t nonzero_bits<double>(Vec<double> v) {
  return _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_NEQ_UQ);
}
#elif defined(__AVX2__)
template <>
inline uint32_t nonzero_bits<float>(Vec<float> v) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NEQ_UQ));
}
template <>
inline uint32_t nonzero_bits<double>(Vec<double> v) {
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, _mm256_setzero_pd(), _CMP_NEQ_UQ));
}
#endif

// A lane l takes a[l] + a[l ^ Width], or the same of b where l & Width.
template <int Width, typename T, int... Lane>
inline Vec<T> fold_lanes(Vec<T> a, Vec<T> b, std::integer_sequence<int, Lane...>) {
  constexpr int V = kLanes<T>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (Lane & Width ? Lane + V : Lane)...) +
         __builtin_shufflevector(a, b, (Lane & Width ? (Lane ^ Width) + V : Lane ^ Width)...);
#else
  return __builtin_shuffle(a, b, IntVec<T>{(Lane & Width ? Lane + V : Lane)...}) +
         __builtin_shuffle(a, b, IntVec<T>{(Lane & Width ? (Lane ^ Width) + V : Lane ^ Width)...});
#endif
}

template <int Width, typename T>
inline void fold_vectors(Vec<T>* vectors) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
#pragma GCC unroll 8
  for (int i = 0; i < Width; ++i) {
    vectors[i] = fold_lanes<Width, T>(vectors[i], vectors[i + Width], lanes);
  }
  if constexpr (Width > 1) fold_vectors<Width / 2, T>(vectors);
}

// Lane i becomes the sum of the lanes of vector i.
template <typename T>
inline Vec<T> horizontal_sums(const T* vectors) {  // [lanes, lanes]
  Vec<T> sums[kLanes<T>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) sums[i] = load(vectors + i * kLanes<T>);
  fold_vectors<kLanes<T> / 2, T>(sums);
  return sums[0];
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
