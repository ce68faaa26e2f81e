// Products of matrix tiles in shared memory, on the tensor cores for bfloat16 and on CUDA cores for
// float32 and float64, with one layout of the result: that of mma.m16n8k16 (mma.cuh). A warp's
// fragment of a 16 x 8 product holds, with g = lane / 4 and t = lane % 4,
//   sums[0..1] = D[g, 2t..2t+1],  sums[2..3] = D[g + 8, 2t..2t+1].
// All 32 lanes must call, converged. Rows must be 16-byte aligned.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/numeric.cuh"

namespace deepcrf::cuda {

// Row and column in a 16 x 8 product of element `part` of a lane's fragment.
__device__ inline int fragment_row(int part) { return lane_index() / 4 + part / 2 * 8; }
__device__ inline int fragment_column(int part) { return lane_index() % 4 * 2 + part % 2; }

// Elements by which rows in shared memory are padded, so that a warp's eight rows lie in different
// banks.
template <class T>
constexpr int kRowPadding = 16 / sizeof(T);

// What a warp multiplies at a time: A, 16 x kFragmentDepth, and B, kFragmentDepth x 8.
template <class T>
constexpr int kFragmentDepth = 16 / sizeof(T);
template <>
constexpr int kFragmentDepth<bfloat16> = 16;

template <class T>
struct FragmentA {
  T values[2][kFragmentDepth<T>];  // rows g and g + 8

  // A[row, depth] at matrix[row * pitch + depth].
  __device__ void load(const T* matrix, int pitch) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      load_values(matrix + (lane_index() / 4 + row * 8) * pitch, kFragmentDepth<T>, true,
                  values[row]);
    }
  }
};

template <class T>
struct FragmentB {
  T values[2][kFragmentDepth<T>];  // columns 2t and 2t + 1

  // B[depth, column] at matrix[depth * pitch + column].
  __device__ void load(const T* matrix, int pitch) {
#pragma unroll
    for (int depth = 0; depth < kFragmentDepth<T>; ++depth) {
      T pair[2];
      load_values(matrix + depth * pitch + lane_index() % 4 * 2, 2, true, pair);
      values[0][depth] = pair[0];
      values[1][depth] = pair[1];
    }
  }

  // B[depth, column] at matrix[column * pitch + depth].
  __device__ void load_transposed(const T* matrix, int pitch) {
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      load_values(matrix + (lane_index() % 4 * 2 + column) * pitch, kFragmentDepth<T>, true,
                  values[column]);
    }
  }
};

template <>
struct FragmentA<bfloat16> {
  uint32_t values[4];

  __device__ void load(const bfloat16* matrix, int pitch) {
    ldmatrix(values, matrix + lane_index() % 16 * pitch + lane_index() / 16 * 8);
  }
};

template <>
struct FragmentB<bfloat16> {
  uint32_t values[2];

  __device__ void load(const bfloat16* matrix, int pitch) {
    ldmatrix_transposed(values, matrix + lane_index() % 16 * pitch);
  }
  __device__ void load_transposed(const bfloat16* matrix, int pitch) {
    ldmatrix(values, matrix + lane_index() % 8 * pitch + lane_index() / 8 % 2 * 8);
  }
};

// sums += A . B
template <class T>
__device__ void multiply(const FragmentA<T>& a, const FragmentB<T>& b, T (&sums)[4]) {
#pragma unroll
  for (int depth = 0; depth < kFragmentDepth<T>; ++depth) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      sums[part] += a.values[part / 2][depth] * b.values[part % 2][depth];
    }
  }
}
__device__ inline void multiply(const FragmentA<bfloat16>& a, const FragmentB<bfloat16>& b,
                                float (&sums)[4]) {
  mma_m16n8k16_bf16(sums, a.values, b.values);
}

// sums[i] += A . B' for kTiles neighbouring 16 x 8 products.
template <class T, int kTiles>
__device__ void multiply_transposed(const T* a,  // [16, depth]
                                    const T* b,  // [8 * kTiles, depth]
                                    int pitch,   // of the rows of both
                                    int depth,   // a multiple of 16
                                    Accumulator<T> (&sums)[kTiles][4]) {
#pragma unroll 2
  for (int k = 0; k < depth; k += kFragmentDepth<T>) {
    FragmentA<T> fragment_a;
    fragment_a.load(a + k, pitch);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      FragmentB<T> fragment_b;
      fragment_b.load_transposed(b + i * 8 * pitch + k, pitch);
      multiply(fragment_a, fragment_b, sums[i]);
    }
  }
}

}  // namespace deepcrf::cuda
