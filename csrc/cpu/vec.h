// SIMD vectors of one instruction set, on the compiler's vector extensions.
//
// This header is included by sources that are compiled once per instruction set; everything lives
// in a namespace named after it, so the copies never meet at link time.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace deepcrf::cpu::DEEPCRF_ISA {

#if defined(__AVX512F__) || defined(DEEPCRF_EMULATE_TILES)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct VecType;
template <>
struct VecType<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t integer __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecType<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t integer __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecType<int32_t> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vec = typename VecType<T>::type;
template <typename T>
using IntVec = typename VecType<T>::integer;

template <typename T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

template <typename T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

// max(v, 0) that keeps NaN, as torch.relu does.
template <typename T>
inline Vec<T> relu(Vec<T> v) {
  return v < 0 ? Vec<T>{} : v;
}
#if defined(__AVX512F__)
template <>
inline Vec<float> relu<float>(Vec<float> v) {
  return (Vec<float>)_mm512_maskz_max_ps(0xFFFF, _mm512_setzero_ps(), (__m512)v);
}
#elif defined(__AVX2__)
template <>
inline Vec<float> relu<float>(Vec<float> v) {
  return (Vec<float>)_mm256_max_ps(_mm256_setzero_ps(), (__m256)v);
}
#endif

// v where mask_source > 0, else 0: the gradient of relu.
template <typename T>
inline Vec<T> where_positive(Vec<T> mask_source, Vec<T> v) {
  return mask_source > 0 ? v : Vec<T>{};
}

template <typename T>
inline T horizontal_sum(Vec<T> v) {
  // Pairwise, so that the rounding does not depend on how the compiler orders a loop.
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <typename T>
inline T horizontal_max(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i + width] > lanes[i] ? lanes[i + width] : lanes[i];
  }
  return lanes[0];
}

// exp(x) for x <= 0 (what a softmax needs): exact zero below the smallest normal number. For
// vectors of any number of floats, and of as many int32_t. Cody-Waite reduction by ln 2, then a
// polynomial on [-ln2/2, ln2/2]; relative error < 2 ulp.
template <typename Float, typename Int>
inline Float exp_nonpositive_lanes(Float x) {
  const Float magic = 12582912.0f - Float{};  // 1.5 * 2^23: adding it rounds to an integer
  const Float shifted = x * 1.44269504088896341f + magic;
  const Float n = shifted - magic;
  Float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Float p = 1.9875691500e-4f - Float{};
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Int exponent = ((Int)shifted + (127 - 0x4B400000)) << 23;
  const Float result = p * (Float)exponent;
  return x < -87.0f ? Float{} : result;
}

inline Vec<float> exp_nonpositive(Vec<float> x) {
  return exp_nonpositive_lanes<Vec<float>, IntVec<float>>(x);
}

inline Vec<double> exp_nonpositive(Vec<double> x) {
  double lanes[kLanes<double>];
  store(lanes, x);
  for (double& lane : lanes) lane = __builtin_exp(lane);
  return load(lanes);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
