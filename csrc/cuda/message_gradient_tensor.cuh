// The gradient of messages on the tensor cores: of bfloat16 and float16, and of float32 by
// TensorFloat32. A walk takes the coefficients of a block of labels of both kinds, marginals and
// gradients, tiles of 8 labels one kind after the other.
#pragma once

#include "cuda/aggregate_tensor.cuh"
#include "cuda/label_blocks.cuh"
#include "cuda/message_gradient.cuh"

namespace deepcrf::cuda {

// Products of the gradient of T. float16 is multiplied in TensorFloat32, which holds as many bits
// and the exponents that gradients may have.
template <class T>
using GradientFragments = Fragments<std::conditional_t<std::is_same_v<T, float16>, tf32, T>>;

template <class T>
using TensorBlockTask = BlockTask<T, typename GradientFragments<T>::Element>;

// Features of one warp.
template <class T>
constexpr int kTensorFeatures = 8 * GradientFragments<T>::kVector;

template <int kLabels>
constexpr int kGradientTiles = 2 * kLabels / 8;
// Coefficients of a node in a block of labels, as a warp reads them.
template <int kLabels>
constexpr int kBlockSlots = 8 * kSlots<kGradientTiles<kLabels>>;

// Where the coefficients of a node stand, blocks of labels one after another.
struct TensorGradientLayout {
  int num_labels;
  int labels;   // of a block
  int slots;    // of a group of lanes
  int columns;  // of a node

  explicit TensorGradientLayout(int64_t num_labels)
      : num_labels(static_cast<int>(num_labels)),
        labels(block_labels<float>(num_labels)),
        slots(labels <= 16 ? kSlots<kGradientTiles<16>> : kSlots<kGradientTiles<24>>),
        columns(static_cast<int>(ceil_div<int64_t>(num_labels, labels)) * 8 * slots) {}

  // Which of the K marginals, then K gradients, stands in a column; -1: none.
  __device__ int source(int column) const {
    const int tile = column % slots;
    const int kind = tile / (labels / 8);
    const int label = column / (8 * slots) * labels + tile % (labels / 8) * 8 + column / slots % 8;
    return kind < 2 && label < num_labels ? kind * num_labels + label : -1;
  }
};

// The row of A and B of label `within` of a walk's tile, -1: none.
template <int kTiles>
__device__ int gradient_row(int tile, int within, int first_label, int num_labels) {
  const int label = first_label + tile % (kTiles / 2) * 8 + within;
  return label < num_labels ? tile / (kTiles / 2) * num_labels + label : -1;
}

// A of a block of nodes, and the sums of coefficients. One warp a node, block of features, or their
// end for the sums, and block of labels.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock, kVectorised&& kTerms<T> == 1 ? 3 : 2)
    tensor_aggregate_kernel(const __grid_constant__ TensorBlockTask<T> task,
                            BlockElement<T>* aggregates,  // [block, 2K, D]
                            float* coefficient_sums) {    // [block, 2K]
  using F = GradientFragments<T>;
  constexpr int kTiles = kGradientTiles<kLabels>;
  const int64_t D = task.direction.num_features;
  // A block of nodes is small: ints.
  const int num_nodes = static_cast<int>(task.block.count);
  const int feature_blocks = static_cast<int>(ceil_div<int64_t>(D, kTensorFeatures<T>)) + 1;
  const int count = feature_blocks * (task.columns / kBlockSlots<kLabels>)*num_nodes;
  for (int i = static_cast<int>(first_warp()); i < count; i += static_cast<int>(num_warps())) {
    const int node = i % num_nodes;
    const int feature_block = i / num_nodes % feature_blocks;
    const int label_block = i / num_nodes / feature_blocks;
    const int first_label = label_block * kLabels;
    const int64_t feature =
        int64_t{feature_block} * kTensorFeatures<T> + lane_index() / 4 * F::kVector;
    const int64_t first_row = int64_t{2} * task.num_labels * node;
    const auto* coefficients = task.coefficients + label_block * kBlockSlots<kLabels>;
    if (feature_block == feature_blocks - 1) {
      sum_coefficients<kTiles>(task.direction, task.block.first + node, coefficients, task.columns,
                               [&](int tile, int label, float sum) {
                                 const int row = gradient_row<kTiles>(tile, label, first_label,
                                                                      task.num_labels);
                                 if (row >= 0) coefficient_sums[first_row + row] = sum;
                               });
      continue;
    }
    BlockElement<T>* of_node = aggregates + first_row * D + feature;
    float sums[F::kProducts][kTiles][4];
    const int64_t p = task.block.first + node;
    aggregate_on_tensor_cores<F, kVectorised>(task.direction, p, {task.direction, p}, feature,
                                              coefficients, task.columns, sums, [](const auto&) {});
    for_each_label<F>(sums, [&](int tile, int label, const float (&values)[F::kVector]) {
      const int row = gradient_row<kTiles>(tile, label, first_label, task.num_labels);
      if (row < 0) return;
      if constexpr (!kVectorised) {
        store_values(of_node + row * D, D - feature, false, values);
      } else if (feature < D) {
        store_16_bytes(of_node + row * D, F::packed(values));
      }
    });
  }
}

// dL/dself of a block of nodes: the sum of dL/dh over the edges where h > 0. dL/dh is a product of
// features by labels, B, with labels by edges. One warp a node and block of features.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock, kTerms<T> > 1 ? 2 : 3)
    tensor_node_gradient_kernel(const __grid_constant__ TensorBlockTask<T> task,
                                const BlockElement<T>* projections,  // [block, 2K, D]
                                float* gradient) {                   // [N, D]
  using F = GradientFragments<T>;
  constexpr int kTiles = kGradientTiles<kLabels>;
  constexpr int kSteps = kTiles / F::kLabelTiles;
  using Coefficients = typename F::template Coefficients<kSlots<kTiles>>;
  const Direction<T>& direction = task.direction;
  const int64_t D = direction.num_features;
  const int num_nodes = static_cast<int>(task.block.count);
  const int count = static_cast<int>(ceil_div<int64_t>(D, kTensorFeatures<T>)) * num_nodes;
  const int group = lane_index() / 4;
  const int pair = lane_index() % 4 * 2;
  for (int i = static_cast<int>(first_warp()); i < count; i += static_cast<int>(num_warps())) {
    const int node = i % num_nodes;
    const int64_t p = task.block.first + node;
    const int64_t feature = int64_t{i / num_nodes} * kTensorFeatures<T> + group * F::kVector;
    const int64_t valid_features = D - feature;
    const int64_t first_read = valid_features > 0 ? feature : 0;
    const ByteRows<T> rows(direction.other + first_read, D);
    const auto self =
        F::template load<kVectorised>(direction.self + p * D + first_read, valid_features);
    float total[F::kVector] = {};
    for (int first_label = 0; first_label < task.num_labels; first_label += kLabels) {
      const BlockElement<T>* of_node =
          projections + int64_t{2} * task.num_labels * node * D + feature;
      typename F::FragmentA projected[kSteps][F::kProducts];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const BlockElement<T>* label_rows[2];
        int64_t valid[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int row = gradient_row<kTiles>(tile, pair + k, first_label, task.num_labels);
          label_rows[k] = of_node + (row < 0 ? 0 : row * D);
          valid[k] = row < 0 ? 0 : valid_features;
        }
        F::template load_labels<kVectorised>(projected[tile / F::kLabelTiles], tile, label_rows,
                                             valid);
      }
      const ByteRows<typename F::Element> coefficient_rows(
          task.coefficients + first_label / kLabels * kBlockSlots<kLabels> + pair * kSlots<kTiles>,
          task.columns);
      for (NeighbourLanes neighbours(direction, p); neighbours.next();) {
        typename F::Features others[2][2];
        Coefficients of_edge[2][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // 8 edges
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            others[half][e] = F::template load<kVectorised>(
                rows[neighbours.at(half * 8 + pair + e)], valid_features);
          }
          const auto* packed = reinterpret_cast<const Coefficients*>(
              coefficient_rows[neighbours.at(half * 8 + group)]);
          of_edge[half][0] = packed[0];
          of_edge[half][1] = packed[1];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float sums[F::kProducts][4] = {};
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            const auto b = F::labels(of_edge[half], step * F::kLabelTiles);
#pragma unroll
            for (int product = 0; product < F::kProducts; ++product) {
              F::multiply(sums[product], projected[step][product], b);
            }
          }
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const bool valid = half * 8 + pair + e < neighbours.count();
            const auto positive = F::positive(self, others[half][e], valid);
#pragma unroll
            for (int f = 0; f < F::kVector; ++f) {
              const float sum = total[f] + sums[f / 2][f % 2 * 2 + e];
              total[f] = positive[f] ? sum : total[f];
            }
          }
        }
      }
    }
    quad_sums(total);
    constexpr int kStored = F::kVector / 4;
#pragma unroll
    for (int f = 0; f < kStored; ++f) {
      const int64_t d = feature + lane_index() % 4 * kStored + f;
      if (d < D) gradient[p * D + d] = total[f];
    }
  }
}

}  // namespace deepcrf::cuda
