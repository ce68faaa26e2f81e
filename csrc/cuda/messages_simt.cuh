// Factored messages on CUDA cores (design: "mean field without the K x K tables"), for float32 and
// float64.
//
// A block receives for four nodes over one block of features, and one block of labels at a time: a
// warp sums up A of its own node (aggregate.cuh) and leaves it in shared memory; then the warps
// share out the receiving labels, and contract A of all four nodes with a weight that is read once.
#pragma once

#include <algorithm>

#include "cuda/aggregate.cuh"
#include "cuda/launch.cuh"

namespace deepcrf::cuda {

// Shared memory of one warp: the stages of its edges, then A of its node.
template <class T, int kLabels>
constexpr int kAggregateBytes =
    std::max<int>(kStageBytes<T, kLabels>, kLabels* kFeatureBlock<T> * sizeof(Accumulator<T>));

// Receiving labels of a warp at a time, kWarpsPerBlock apart, and neighbours' labels whose weights
// are in flight together.
template <int kLabels>
constexpr int kReceivers = kLabels / kWarpsPerBlock;
constexpr int kWeightStep = 2;

// This warp's products of A of the block's nodes with the weight, summed over a block of the
// neighbours' labels: lane n + kWarpsPerBlock * i gets that of node n and receiving label
// first_receiver + kWarpsPerBlock * i.
template <int kLabels, bool kVectorised, class T>
__device__ Accumulator<T> contract(const Direction<T>& direction,
                                   const LaneFeatures<T, kVectorised>& features, int num_labels,
                                   int first_label, int first_receiver,
                                   const unsigned char* shared) {  // [warps, kAggregateBytes]
  using A = Accumulator<T>;
  constexpr int V = kVector<T>;
  constexpr int kProducts = kReceivers<kLabels> * kWarpsPerBlock;
  constexpr int kPadded = kProducts <= 8 ? 8 : kProducts <= 16 ? 16 : 32;
  A products[kPadded] = {};
  for (int step = 0; step < kLabels && first_label + step < num_labels; step += kWeightStep) {
    A weights[kWeightStep][kReceivers<kLabels>][V];
#pragma unroll
    for (int j = 0; j < kWeightStep; ++j) {
#pragma unroll
      for (int i = 0; i < kReceivers<kLabels>; ++i) {
        const int receiver = min(first_receiver + i * kWarpsPerBlock, num_labels - 1);
        const int label = min(first_label + step + j, num_labels - 1);
        features.load(direction.weight + direction.pair(receiver, label) * direction.num_features,
                      weights[j][i]);
      }
    }
#pragma unroll
    for (int j = 0; j < kWeightStep; ++j) {
      if (first_label + step + j >= num_labels) break;
#pragma unroll
      for (int n = 0; n < kWarpsPerBlock; ++n) {
        A sums[V];
        load_values(reinterpret_cast<const A*>(shared + n * kAggregateBytes<T, kLabels>) +
                        (step + j) * kFeatureBlock<T> + lane_index() * V,
                    V, true, sums);
#pragma unroll
        for (int i = 0; i < kReceivers<kLabels>; ++i) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            products[i * kWarpsPerBlock + n] += weights[j][i][v] * sums[v];
          }
        }
      }
    }
  }
  return warp_sums<kPadded>(products);
}

// One block a split and kWarpsPerBlock nodes.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock, kLabels > 8 ? 3 : 4)
    simt_messages_kernel(const __grid_constant__ MessageSplits<T> splits, int64_t num_nodes,
                         int num_labels, CoefficientLayout<T> layout,
                         const Accumulator<T>* coefficients,  // [N, columns]
                         Accumulator<T>* messages) {          // [splits, N, K]
  wait_for_former_kernels();
  using A = Accumulator<T>;
  static_assert(!kOnTensorCores<T> && MessageBlock<T>::kFeatures == kFeatureBlock<T> &&
                MessageBlock<T>::kNodes == kWarpsPerBlock);
  unsigned char* shared = dynamic_shared<unsigned char>();  // [warps, kAggregateBytes]
  __shared__ A coefficient_sums[kWarpsPerBlock][kLabels];
  const int warp = threadIdx.x / kWarpSize;
  unsigned char* of_warp = shared + warp * kAggregateBytes<T, kLabels>;
  const int64_t node_blocks = ceil_div<int64_t>(num_nodes, kWarpsPerBlock);
  for (int64_t block = blockIdx.x; block < splits.count() * node_blocks; block += gridDim.x) {
    const int split = static_cast<int>(block / node_blocks);
    const int64_t first_node = block % node_blocks * kWarpsPerBlock;
    const int index = splits.direction_of(split);
    const Direction<T>& direction = splits.directions[index];
    const bool has_bias = split == splits.first_split[index];
    const LaneFeatures<T, kVectorised> features(direction, split - splits.first_split[index]);
    for (int first_label = 0; first_label < num_labels; first_label += kLabels) {
      A sums[kLabels][kVector<T>] = {};
      if (first_node + warp < num_nodes) {
        const A coefficient_sum =
            aggregate(direction, first_node + warp, features, coefficients + first_label,
                      layout.columns, of_warp, sums);
        if (lane_index() < kLabels) coefficient_sums[warp][lane_index()] = coefficient_sum;
      }
      A* aggregates = reinterpret_cast<A*>(of_warp);  // [kLabels, kFeatureBlock]
#pragma unroll
      for (int j = 0; j < kLabels; ++j) {
        store_values(aggregates + j * kFeatureBlock<T> + lane_index() * kVector<T>, kVector<T>,
                     true, sums[j]);
      }
      __syncthreads();
      const int64_t node = first_node + lane_index() % kWarpsPerBlock;
      constexpr int kStep = kReceivers<kLabels> * kWarpsPerBlock;
      for (int first = warp; first < num_labels; first += kStep) {
        A sum = contract<kLabels>(direction, features, num_labels, first_label, first, shared);
        const int i = lane_index() / kWarpsPerBlock;
        const int receiver = first + i * kWarpsPerBlock;
        if (i >= kReceivers<kLabels> || receiver >= num_labels || node >= num_nodes) continue;
        if (has_bias) {
          for (int j = 0; j < kLabels && first_label + j < num_labels; ++j) {
            sum += direction.bias[direction.pair(receiver, first_label + j)] *
                   coefficient_sums[lane_index() % kWarpsPerBlock][j];
          }
        }
        A* message = messages + (split * num_nodes + node) * num_labels + receiver;
        *message = first_label == 0 ? sum : *message + sum;
      }
      __syncthreads();
    }
  }
}

template <class T>
void launch_simt_messages(const MessageSplits<T>& splits, int64_t num_nodes, int64_t num_labels,
                          const Accumulator<T>* coefficients,  // [N, columns]
                          Accumulator<T>* messages,            // [splits, N, K]
                          void* stream) {
  dispatch_kernel<T>(num_labels, splits.vectorised(), [&](auto labels, auto vectorised) {
    launch_early("messages", simt_messages_kernel<labels(), vectorised(), T>,
                 grid_size(splits.num_blocks(num_nodes), 1), kThreadsPerBlock,
                 kWarpsPerBlock * kAggregateBytes<T, labels()>, stream, splits, num_nodes,
                 static_cast<int>(num_labels), CoefficientLayout<T>(num_labels), coefficients,
                 messages);
  });
}

}  // namespace deepcrf::cuda
