// Register-blocked matrix product on vector rows: C = A B, or C += A B where Add.
//
// B and C have rows of whole vectors; A is read one scalar at a time at any strides, so that a
// transposed A costs nothing. Callers keep the operands of one call in the L2 cache.
#pragma once

#include "cpu/vec.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// The register block: kGemmRows * kGemmVectors accumulators, one row of B, one broadcast of A.
constexpr int kGemmVectors = kVectorRegisters == 32 ? 4 : 2;
constexpr int kGemmRows = 6;

template <bool Add, int Rows, int Vectors, typename T>
inline void gemm_block(int64_t depth,
                       const T* a,  // (m, k) at a[m * a_row + k * a_step]
                       int64_t a_row, int64_t a_step,
                       const T* b,  // [depth, Vectors * lanes], rows b_row apart
                       int64_t b_row,
                       T* c,  // [Rows, Vectors * lanes], rows c_row apart
                       int64_t c_row) {
  Vec<T> sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) {
      sum[m][n] = Add ? load(c + m * c_row + n * kLanes<T>) : Vec<T>{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[Vectors];
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) row[n] = load(b + k * b_row + n * kLanes<T>);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
      const T scalar = a[m * a_row + k * a_step];
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) sum[m][n] += scalar * row[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) store(c + m * c_row + n * kLanes<T>, sum[m][n]);
  }
}

template <bool Add, int Vectors, typename T>
inline void gemm_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_step,
                      const T* b, int64_t b_row, T* c, int64_t c_row) {
  int64_t m = 0;
  for (; m + kGemmRows <= rows; m += kGemmRows) {
    gemm_block<Add, kGemmRows, Vectors>(depth, a + m * a_row, a_row, a_step, b, b_row,
                                        c + m * c_row, c_row);
  }
  for (; m + 2 <= rows; m += 2) {
    gemm_block<Add, 2, Vectors>(depth, a + m * a_row, a_row, a_step, b, b_row, c + m * c_row,
                                c_row);
  }
  if (m < rows) {
    gemm_block<Add, 1, Vectors>(depth, a + m * a_row, a_row, a_step, b, b_row, c + m * c_row,
                                c_row);
  }
}

// C[rows, vectors * lanes] (+)= A[rows, depth] B[depth, vectors * lanes].
template <bool Add, typename T>
void gemm(int64_t rows, int64_t vectors, int64_t depth, const T* a, int64_t a_row, int64_t a_step,
          const T* b, int64_t b_row, T* c, int64_t c_row) {
  for (int64_t n = 0; n < vectors;) {
    const T* b_block = b + n * kLanes<T>;
    T* c_block = c + n * kLanes<T>;
    const int64_t left = vectors - n;
    if (left >= kGemmVectors) {
      gemm_rows<Add, kGemmVectors>(rows, depth, a, a_row, a_step, b_block, b_row, c_block, c_row);
      n += kGemmVectors;
    } else if (left >= 2) {
      gemm_rows<Add, 2>(rows, depth, a, a_row, a_step, b_block, b_row, c_block, c_row);
      n += 2;
    } else {
      gemm_rows<Add, 1>(rows, depth, a, a_row, a_step, b_block, b_row, c_block, c_row);
      n += 1;
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
