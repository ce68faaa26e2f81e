// The operands of products, and the type their sums are kept in.
#pragma once

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

}  // namespace deepcrf::cpu::DEEPCRF_ISA
