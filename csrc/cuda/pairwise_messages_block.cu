// The gradient of L = sum_p grad_p . m_p in a factored potential. As dL/dV_pq(k, j) =
// grad_p[k] Q_q[j] + Q_p[k] grad_q[j], every neighbour brings 2K coefficients c_q = (Q_q, grad_q):
//   dL/dW[k, j] = sum_p grad_p[k] A_p[j] + Q_p[k] A_p[K + j],   A_p[c] = sum_q c_q[c] h_pq,
//   dL/dh_pq    = sum_c c_q[c] B_p[c],   B_p[j] = sum_k grad_p[k] W[k, j],
//                                        B_p[K + j] = sum_k Q_p[k] W[k, j].
// Here are A, and the sums of dL/dh at the nodes; dL/dW and B are matrix products.
#include "cuda/aggregate.cuh"
#include "cuda/launch.cuh"
#include "ops/pairwise_messages_block.h"

namespace deepcrf::cuda {

namespace {

// A and B as matrix products take them.
template <class T>
using BlockElement = std::conditional_t<std::is_same_v<T, bfloat16>, bfloat16, Accumulator<T>>;

template <class T>
struct BlockTask {
  Direction<T> direction;
  NodeBlock block;
  int num_columns;                     // 2K
  const Accumulator<T>* coefficients;  // [N, columns]
  int columns;
};

// A of a block of nodes. One warp a node, block of features and block of coefficients.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    aggregate_kernel(const __grid_constant__ BlockTask<T> task,
                     BlockElement<T>* aggregates,         // [block, 2K, D]
                     Accumulator<T>* coefficient_sums) {  // [block, 2K]
  using A = Accumulator<T>;
  const Direction<T>& direction = task.direction;
  const int64_t D = direction.num_features;
  const int64_t num_nodes = task.block.count;
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
    const int64_t row = node * task.num_columns + first;
    if (feature_block == 0 && lane_index() < kLabels && first + lane_index() < task.num_columns) {
      coefficient_sums[row + lane_index()] = coefficient_sum;
    }
#pragma unroll
    for (int c = 0; c < kLabels; ++c) {
      if (first + c >= task.num_columns) break;
      BlockElement<T>* out = aggregates + (row + c) * D + features.feature;
#pragma unroll
      for (int v = 0; v < kVector<T>; ++v) {
        if (v < features.valid) out[v] = narrowed<BlockElement<T>>(sums[c][v]);
      }
    }
  }
}

// dL/dself of a block of nodes: the sum of dL/dh over the edges where h > 0. One warp a node and
// block of features.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock, 3)
    node_gradient_kernel(const __grid_constant__ BlockTask<T> task,
                         const BlockElement<T>* projections,  // [block, 2K, D]
                         Accumulator<T>* gradient) {          // [N, D]
  using A = Accumulator<T>;
  const Direction<T>& direction = task.direction;
  const int64_t D = direction.num_features;
  const int64_t num_nodes = task.block.count;
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
    for (int first = 0; first < task.num_columns; first += kLabels) {
      A projected[kLabels][kVector<T>];
#pragma unroll
      for (int c = 0; c < kLabels; ++c) {
        const BlockElement<T>* row =
            projections + (node * task.num_columns + first + c) * D + features.feature;
#pragma unroll
        for (int v = 0; v < kVector<T>; ++v) {
          const bool valid = first + c < task.num_columns && v < features.valid;
          projected[c][v] = valid ? A(row[v]) : A(0);
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

template <class T>
BlockTask<T> block_task(const Direction<T>& direction, const NodeBlock& block, int64_t num_labels,
                        const void* coefficients) {
  return {direction, block, static_cast<int>(2 * num_labels),
          static_cast<const Accumulator<T>*>(coefficients), padded_labels<T>(2 * num_labels)};
}

}  // namespace

int64_t message_columns(DType dtype, int64_t num_labels) {
  int64_t columns = 0;
  dispatch_floating(dtype, "potential",
                    [&](auto tag) { columns = padded_labels<decltype(tag)>(2 * num_labels); });
  return columns;
}

void message_aggregates(const GraphView& graph, const AnyFactoredPotential& potential,
                        const NodeBlock& block, const void* coefficients, void* aggregates,
                        void* coefficient_sums, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    const Direction<T> direction = along(graph, potential.as<T>(), kVector<T>);
    const BlockTask<T> task = block_task(direction, block, potential.num_labels, coefficients);
    dispatch_kernel<T>(
        2 * potential.num_labels, direction.vectorised, [&](auto labels, auto vectorised) {
          const int64_t feature_blocks =
              ceil_div(potential.num_features, int64_t{kFeatureBlock<T>});
          launch(
              "aggregate", aggregate_kernel<labels(), vectorised(), T>,
              grid_size(feature_blocks * (task.columns / labels()) * block.count, kWarpsPerBlock),
              kThreadsPerBlock, kWarpsPerBlock * kStageBytes<T, labels()>, ctx.stream, task,
              static_cast<BlockElement<T>*>(aggregates),
              static_cast<Accumulator<T>*>(coefficient_sums));
        });
  });
}

void message_node_gradient(const GraphView& graph, const AnyFactoredPotential& potential,
                           const NodeBlock& block, const void* coefficients,
                           const void* projections, bool of_targets, void* gradient,
                           const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    const FactoredPotential<T> factored = potential.as<T>();
    const Direction<T> direction =
        of_targets ? against(graph, factored, kVector<T>) : along(graph, factored, kVector<T>);
    const BlockTask<T> task = block_task(direction, block, potential.num_labels, coefficients);
    dispatch_kernel<T>(2 * potential.num_labels, direction.vectorised,
                       [&](auto labels, auto vectorised) {
                         const int64_t feature_blocks =
                             ceil_div(potential.num_features, int64_t{kFeatureBlock<T>});
                         launch("node_gradient", node_gradient_kernel<labels(), vectorised(), T>,
                                grid_size(feature_blocks * block.count, kWarpsPerBlock),
                                kThreadsPerBlock, kWarpsPerBlock * kStageBytes<T, labels()>,
                                ctx.stream, task, static_cast<const BlockElement<T>*>(projections),
                                static_cast<Accumulator<T>*>(gradient));
                       });
  });
}

}  // namespace deepcrf::cuda
