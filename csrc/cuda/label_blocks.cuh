// Labels in blocks that a warp's registers hold, and where the coefficients of nodes stand: the
// marginals, or what else messages are summed with.
#pragma once

#include <climits>
#include <type_traits>

#include "core/checks.h"
#include "cuda/arithmetic.cuh"
#include "cuda/tf32.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

// Labels are cut into near-equal blocks of at most kMostLabels accumulators a feature, a multiple
// of kLabelStep. Rows of coefficients are padded with zeros to whole blocks.
constexpr int kLabelStep = 8;
template <class T>
constexpr int kMostLabels = 24;
template <>
constexpr int kMostLabels<double> = kLabelStep;

template <class T>
int block_labels(int64_t num_labels) {
  const int64_t blocks = ceil_div<int64_t>(num_labels, kMostLabels<T>);
  return static_cast<int>(round_up<int64_t>(ceil_div(num_labels, blocks), kLabelStep));
}
template <class T>
int padded_labels(int64_t num_labels) {
  return static_cast<int>(round_up<int64_t>(num_labels, block_labels<T>(num_labels)));
}

// Calls function(std::integral_constant<int, labels>) for labels = block_labels(num_labels).
template <class T, class Function>
void dispatch_labels(int64_t num_labels, Function&& function) {
  switch (block_labels<T>(num_labels)) {
    case 8: return function(std::integral_constant<int, 8>{});
    case 16:
      if constexpr (kMostLabels<T> >= 16) return function(std::integral_constant<int, 16>{});
      break;
    case 24:
      if constexpr (kMostLabels<T> >= 24) return function(std::integral_constant<int, 24>{});
      break;
  }
  throw Error("no kernel for this number of labels");
}

// The same with a std::bool_constant<vectorised>. Loads of which the compiler knows whether they
// are by vectors stand in one basic block, and so are in flight together.
template <class T, class Function>
void dispatch_kernel(int64_t num_labels, bool vectorised, Function&& function) {
  dispatch_labels<T>(num_labels, [&](auto labels) {
    if (vectorised) return function(labels, std::true_type{});
    return function(labels, std::false_type{});
  });
}

// Where the coefficients of a node stand, widened and padded with zeros to whole blocks of labels.
template <class T, bool = kOnTensorCores<T>>
struct CoefficientLayout {
  using Element = Accumulator<T>;
  int columns;  // of a node

  explicit CoefficientLayout(int64_t num_labels) : columns(padded_labels<T>(num_labels)) {}

  __device__ int slot(int label) const { return label; }
  __device__ int label(int slot) const { return slot; }  // may be past the last
};

// For the tensor cores: lane g * 4 + t reads labels g, 8 + g and 16 + g of a block together.
template <class T>
struct CoefficientLayout<T, true> {
  using Element = T;
  int labels;   // of a block
  int columns;  // 32 a block

  explicit CoefficientLayout(int64_t num_labels)
      : labels(block_labels<T>(num_labels)),
        columns(static_cast<int>(ceil_div<int64_t>(num_labels, labels)) * 32) {}

  __device__ int slot(int label) const {
    const int within = label % labels;
    return label / labels * 32 + within % 8 * 4 + within / 8;
  }
  __device__ int label(int slot) const {
    const int tile = slot % 4;
    return tile * 8 < labels ? slot / 32 * labels + tile * 8 + slot % 32 / 4 : INT_MAX;
  }
};

}  // namespace deepcrf::cuda
