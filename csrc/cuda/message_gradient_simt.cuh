// The gradient of messages on CUDA cores, of float32 and float64.
#pragma once

#include "cuda/aggregate.cuh"
#include "cuda/message_gradient.cuh"

namespace deepcrf::cuda {

template <class T>
using SimtBlockTask = BlockTask<T, Accumulator<T>>;

// Coefficients of a node are its K marginals, then its K gradients, padded with zeros.
template <class T>
struct SimtGradientLayout {
  int num_coefficients;  // 2K
  int columns;

  explicit SimtGradientLayout(int64_t num_labels)
      : num_coefficients(static_cast<int>(2 * num_labels)),
        columns(padded_labels<T>(2 * num_labels)) {}

  __device__ int source(int column) const { return column < num_coefficients ? column : -1; }
};

// A of a block of nodes. One warp a node, block of features and block of coefficients.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    simt_aggregate_kernel(const __grid_constant__ SimtBlockTask<T> task,
                          Accumulator<T>* aggregates,          // [block, 2K, D]
                          Accumulator<T>* coefficient_sums) {  // [block, 2K]
  using A = Accumulator<T>;
  const Direction<T>& direction = task.direction;
  const int64_t D = direction.num_features;
  const int64_t num_nodes = task.block.count;
  const int num_columns = 2 * task.num_labels;
  const int64_t feature_blocks = ceil_div<int64_t>(D, kFeatureBlock<T>);
  const int64_t count = feature_blocks * (task.columns / kLabels) * num_nodes;
  unsigned char* shared =
      dynamic_shared<unsigned char>() + threadIdx.x / kWarpSize * kStageBytes<T, kLabels>;
  for (int64_t i = first_warp(); i < count; i += num_warps()) {
    const int64_t node = i % num_nodes;
    const int64_t feature_block = i / num_nodes % feature_blocks;
    const LaneFeatures<T, kVectorised> features(direction, feature_block);
    const int first = static_cast<int>(i / num_nodes / feature_blocks) * kLabels;
    A sums[kLabels][kVector<T>];
    const A coefficient_sum = aggregate(direction, task.block.first + node, features,
                                        task.coefficients + first, task.columns, shared, sums);
    const int64_t row = node * num_columns + first;
    if (feature_block == 0 && lane_index() < kLabels && first + lane_index() < num_columns) {
      coefficient_sums[row + lane_index()] = coefficient_sum;
    }
#pragma unroll
    for (int c = 0; c < kLabels; ++c) {
      if (first + c >= num_columns) break;
      A* out = aggregates + (row + c) * D + features.feature;
#pragma unroll
      for (int v = 0; v < kVector<T>; ++v) {
        if (v < features.valid) out[v] = sums[c][v];
      }
    }
  }
}

// dL/dself of a block of nodes: the sum of dL/dh over the edges where h > 0. One warp a node and
// block of features.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock, 3)
    simt_node_gradient_kernel(const __grid_constant__ SimtBlockTask<T> task,
                              const Accumulator<T>* projections,  // [block, 2K, D]
                              Accumulator<T>* gradient) {         // [N, D]
  using A = Accumulator<T>;
  const Direction<T>& direction = task.direction;
  const int64_t D = direction.num_features;
  const int64_t num_nodes = task.block.count;
  const int num_columns = 2 * task.num_labels;
  const int64_t feature_blocks = ceil_div<int64_t>(D, kFeatureBlock<T>);
  unsigned char* shared =
      dynamic_shared<unsigned char>() + threadIdx.x / kWarpSize * kStageBytes<T, kLabels>;
  for (int64_t i = first_warp(); i < feature_blocks * num_nodes; i += num_warps()) {
    const int64_t node = i % num_nodes;
    const int64_t p = task.block.first + node;
    const LaneFeatures<T, kVectorised> features(direction, i / num_nodes);
    A self[kVector<T>];
    A total[kVector<T>] = {};
    features.load(direction.self + p * D, self);
    for (int first = 0; first < num_columns; first += kLabels) {
      A projected[kLabels][kVector<T>];
#pragma unroll
      for (int c = 0; c < kLabels; ++c) {
        if (first + c < num_columns) {
          features.load(projections + (node * num_columns + first + c) * D, projected[c]);
        } else {
#pragma unroll
          for (int v = 0; v < kVector<T>; ++v) projected[c][v] = 0;
        }
      }
      const auto add = [&](const A(&other)[kVector<T>], const A* of_neighbour) {
        A sum[kVector<T>] = {};
#pragma unroll
        for (int c = 0; c < kLabels; c += kVector<A>) {
          A coefficient[kVector<A>];
          load_values(of_neighbour + c, kVector<A>, true, coefficient);
#pragma unroll
          for (int j = 0; j < kVector<A>; ++j) {
#pragma unroll
            for (int v = 0; v < kVector<T>; ++v) sum[v] += coefficient[j] * projected[c + j][v];
          }
        }
#pragma unroll
        for (int v = 0; v < kVector<T>; ++v) {
          if (self[v] + other[v] > 0) total[v] += sum[v];
        }
      };
      for_each_edge<kLabels>(direction, p, features, task.coefficients + first, task.columns,
                             shared, add);
    }
    features.store(gradient + p * D, total);
  }
}

}  // namespace deepcrf::cuda
