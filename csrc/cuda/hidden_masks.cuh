// Where hidden vectors are positive, or NaN: a byte for each 16 bytes of features, in place of what
// would else be read again.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/vectors.cuh"

namespace deepcrf::cuda {

// Elements of 16 bytes, which one thread moves at once.
template <class T>
constexpr int kRowVector = 16 / sizeof(T);

// Bytes of an edge.
template <class T>
__host__ __device__ constexpr int64_t mask_bytes(int64_t num_features) {
  return (num_features + kRowVector<T> - 1) / kRowVector<T>;
}

// The bit of each of kRowVector features. Of halves the lower ones of pairs come first.
template <class T>
__host__ __device__ constexpr int mask_bit(int feature) {
  return sizeof(T) == 2 ? feature % 2 * 4 + feature / 2 : feature;
}

// The byte of 8 halves that are not negative, in pairs.
template <class T>
__device__ unsigned positive_halves(const uint32_t (&pairs)[4]) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bits |= __hgtu2_mask(pair_of_bits<T>(pairs[i]), pair_of_bits<T>(0)) & (0x10001u << i);
  }
  return bits | bits >> 12;
}

}  // namespace deepcrf::cuda
