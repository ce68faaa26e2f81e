// The operands of products: floats, doubles, or, where the processor multiplies them, pairs of
// bfloat16 in one word, whose two products are added to one float.
#pragma once

#include "core/dtypes.h"
#include "cpu/lanes.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

template <typename Word>
struct SumOf {
  using type = Word;
};
template <typename Word>
using Sum = typename SumOf<Word>::type;

template <typename T>
inline Vec<T> broadcast_word(T value) {
  return broadcast(value);
}

inline Vec<float> multiply_add(Vec<float> sum, Vec<float> a, Vec<float> b) { return sum + a * b; }
inline Vec<double> multiply_add(Vec<double> sum, Vec<double> a, Vec<double> b) {
  return sum + a * b;
}

#if defined(__AVX512BF16__) || defined(DEEPCRF_EMULATE_TILES)
struct BfloatPair {
  bfloat16 first, second;
};
template <>
struct VecType<BfloatPair> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
// Lane i becomes the pair of first[i] and second[i], rounded to nearest even.
inline Vec<BfloatPair> pack_pairs(Vec<float> first, Vec<float> second) {
#if defined(__AVX512BF16__)
  typedef int16_t Halves __attribute__((vector_size(kVectorBytes)));
  const Halves halves = (Halves)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  const Halves order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (Vec<BfloatPair>)_mm512_permutexvar_epi16((__m512i)order, (__m512i)halves);
#else
  BfloatPair pairs[kLanes<float>];
  for (int i = 0; i < kLanes<float>; ++i) pairs[i] = {bfloat16(first[i]), bfloat16(second[i])};
  return load(pairs);
#endif
}

// The numbers of pairs.
inline Vec<float> firsts(Vec<BfloatPair> pairs) { return (Vec<float>)(pairs << 16); }
inline Vec<float> seconds(Vec<BfloatPair> pairs) {
  return (Vec<float>)(pairs & static_cast<int32_t>(0xFFFF0000u));
}

// Sixteen floats, rounded to nearest even, as eight neighbouring pairs.
inline void store_bfloat16(BfloatPair* to, Vec<float> v) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(to, &rounded, sizeof(rounded));
#else
  for (int i = 0; i < kLanes<float>; i += 2) to[i / 2] = {bfloat16(v[i]), bfloat16(v[i + 1])};
#endif
}
#endif

#if defined(__AVX512BF16__)
template <>
struct SumOf<BfloatPair> {
  using type = float;
};

inline Vec<BfloatPair> broadcast_word(BfloatPair pair) {
  int32_t bits;
  std::memcpy(&bits, &pair, sizeof(bits));
  return bits - Vec<BfloatPair>{};
}

inline Vec<float> multiply_add(Vec<float> sum, Vec<BfloatPair> a, Vec<BfloatPair> b) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

}  // namespace deepcrf::cpu::DEEPCRF_ISA
