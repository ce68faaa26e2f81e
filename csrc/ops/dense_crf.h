// Mean field of the dense CRF (Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs
// with Gaussian Edge Potentials", 2011; deepcrf_ext/ops/dense_crf.py).
#pragma once

#include <vector>

#include "ops/permutohedral.h"

namespace deepcrf {

// One Gaussian kernel between all pairs of positions. Its message to position i is
//   compatibility @ (slice_scale[i] * filter(splat_scale * Q)[i]).
template <class Lattice>
struct DenseKernel {
  Lattice lattice;
  const void* splat_scale;    // [N]
  const void* slice_scale;    // [N]
  int64_t compatibility_dim;  // 0: Potts, -weight * identity; 1: a diagonal; 2: a matrix
  const void* compatibility;  // [], [K] or [K, K]
};

struct DenseCRFArguments {
  DType dtype;  // of everything
  int64_t num_labels;
  int64_t num_values;
  int64_t iterations;
  const void* unary;  // [K, N]
  void* marginals;    // [K, N]
  bool log;           // write the logarithms of the marginals, which never round to that of 0
};

namespace cpu {

using DenseKernels = std::vector<DenseKernel<PermutohedralLattice>>;

// Throws Error where unary holds NaN or -inf, or nothing finite at a position.
void dense_crf(const DenseKernels& kernels, const DenseCRFArguments& arguments,
               const ExecutionContext& ctx);

}  // namespace cpu

namespace cuda {

using DenseKernels = std::vector<DenseKernel<PermutohedralLattice>>;

// Where unary holds NaN or -inf, or nothing finite at a position, marginals become NaN there and,
// by the messages, wherever that position reaches.
int64_t dense_crf_workspace(const DenseKernels& kernels, const DenseCRFArguments& arguments);
void dense_crf(const DenseKernels& kernels, const DenseCRFArguments& arguments,
               const ExecutionContext& ctx);

}  // namespace cuda

}  // namespace deepcrf
