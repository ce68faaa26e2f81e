// Factored messages on the tensor cores: of bfloat16 and float16, and of float32 by TensorFloat32.
//
// Four warps receive for 16 nodes over one block of features. They share out the nodes to form A of
// each in shared memory (aggregate_tensor.cuh); then the block contracts A of all 16 with the
// weight, warps sharing out the neighbours' labels.
#pragma once

#include "cuda/aggregate_tensor.cuh"
#include "cuda/label_blocks.cuh"
#include "cuda/launch.cuh"

namespace deepcrf::cuda {

constexpr int kTensorNodes = MessageBlock<bfloat16>::kNodes;

// Elements between A of two nodes: lanes of different nodes lie in different banks.
template <class T, int kLabels>
constexpr int kNodePitch = kLabels * MessageBlock<T>::kFeatures + 64 / sizeof(T);

// Where the features of a group of lanes, 16 bytes, stand in a row of A of eight groups: elsewhere
// for every pair of labels, so that lanes that write different ones use different banks.
__device__ inline int group_place(int group, int label) { return group ^ (label / 2 % 4 * 2); }

// The power of two that A of a node is multiplied by, so that a sum over many neighbours is no
// larger than float16 holds. The others hold what float32 does.
template <class T>
__device__ float aggregate_scale(const Direction<T>& direction, int64_t node) {
  if constexpr (!std::is_same_v<T, float16>) return 1;
  const int64_t degree = direction.row_offsets[node + 1] - direction.row_offsets[node];
  return degree == 0 ? 1 : __uint_as_float(static_cast<unsigned>(64 + __clzll(degree)) << 23);
}

// Products of A of 16 nodes with the weight of 8 receiver labels, summed over this warp's labels of
// the neighbours. Lane g * 4 + t takes kVector features from t * kVector of every 4 * kVector on.
template <int kLabels, bool kVectorised, class T>
__device__ void contract_on_tensor_cores(const Direction<T>& direction, int64_t first_feature,
                                         int num_labels, int first_label, int first_receiver,
                                         const T* aggregates,  // [16, kNodePitch]
                                         float (&sums)[4]) {
  using F = Fragments<T>;
  constexpr int kFeatures = MessageBlock<T>::kFeatures;
  constexpr int kWarpLabels = kLabels / kWarpsPerBlock;
  constexpr int kParts = kFeatures / (4 * F::kVector);
  const int64_t D = direction.num_features;
  const int receiver = first_receiver + lane_index() / 4;
  const int64_t lane_feature = first_feature + lane_index() % 4 * F::kVector;
  const int first = threadIdx.x / kWarpSize;
  // All of this lane's weights first: they are in flight together.
  typename F::Features weights[kWarpLabels][kParts];
  const T* weight =
      direction.weight + direction.pair(receiver, first_label + first) * D + lane_feature;
  const int64_t next_label = direction.pair(0, kWarpsPerBlock) * D;
#pragma unroll
  for (int i = 0; i < kWarpLabels; ++i, weight += next_label) {
    const bool is_pair =
        receiver < num_labels && first_label + first + i * kWarpsPerBlock < num_labels;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int offset = part * 4 * F::kVector;
      const int64_t valid = D - lane_feature - offset;
      weights[i][part] = {};
      if (is_pair && valid > 0) {
        weights[i][part] = F::template load<kVectorised>(weight + offset, valid);
      }
    }
  }
  float part_sums[kParts][4] = {};  // apart: no product waits for that before it
#pragma unroll
  for (int i = 0; i < kWarpLabels; ++i) {
    const int j = first + i * kWarpsPerBlock;
    if (first_label + j >= num_labels) break;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      // That of label j: each kWarpsPerBlock labels, bit 2 of it changes.
      const int place = group_place(part * 4 + lane_index() % 4, first) ^ i % 2 * 4;
      const T* row = aggregates + lane_index() / 4 * kNodePitch<T, kLabels> + j * kFeatures +
                     place * F::kVector;
      F::add_row(part_sums[part], *reinterpret_cast<const uint4*>(row),
                 *reinterpret_cast<const uint4*>(row + 8 * kNodePitch<T, kLabels>),
                 weights[i][part]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[i] = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) sums[i] += part_sums[part][i];
  }
}

// One block a split and 16 nodes.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock, kVectorised ? 4 : 3)
    tensor_messages_kernel(const __grid_constant__ MessageSplits<T> splits, int64_t num_nodes,
                           int num_labels, CoefficientLayout<T> layout,
                           const T* coefficients,  // [N, columns]
                           float* messages) {      // [splits, N, K]
  wait_for_former_kernels();
  using F = Fragments<T>;
  constexpr int kTiles = kLabels / 8;
  constexpr int kFeatures = MessageBlock<T>::kFeatures;
  static_assert(kOnTensorCores<T> && kThreadsPerBlock == kTensorNodes * 8 &&
                F::kVector == MessageBlock<T>::kVector);
  __shared__ float partial[kWarpsPerBlock][kTensorNodes][8];
  __shared__ float coefficient_sums[kTensorNodes][kLabels];
  T* aggregates = dynamic_shared<T>();  // [16, kNodePitch<T, kLabels>]
  const int warp = threadIdx.x / kWarpSize;
  const int group = lane_index() / 4;
  const int64_t node_blocks = ceil_div<int64_t>(num_nodes, kTensorNodes);
  for (int64_t block = blockIdx.x; block < splits.count() * node_blocks; block += gridDim.x) {
    const int split = static_cast<int>(block / node_blocks);
    const int64_t first_node = block % node_blocks * kTensorNodes;
    const int index = splits.direction_of(split);
    const Direction<T>& direction = splits.directions[index];
    const bool has_bias = split == splits.first_split[index];
    const int64_t first_feature =
        static_cast<int64_t>(split - splits.first_split[index]) * kFeatures;
    // Where the edges of the nodes begin, a lane each.
    const int64_t offsets = direction.row_offsets[min(first_node + lane_index(), num_nodes)];
    const auto neighbours_of = [&](int n) {
      return NeighbourLanes(direction.neighbours, __shfl_sync(kAllLanes, offsets, n),
                            __shfl_sync(kAllLanes, offsets, n + 1));
    };
    for (int first_label = 0; first_label < num_labels; first_label += kLabels) {
      NeighbourLanes ahead = neighbours_of(warp);
      for (int n = warp; n < kTensorNodes; n += kWarpsPerBlock) {
        const NeighbourLanes neighbours = ahead;
        if (n + kWarpsPerBlock < kTensorNodes) ahead = neighbours_of(n + kWarpsPerBlock);
        T* of_node = aggregates + n * kNodePitch<T, kLabels>;
        if (first_node + n < num_nodes) {
          float sums[F::kProducts][kTiles][4];
          const int64_t feature = first_feature + group * F::kVector;
          const auto aggregate = [&](const auto& also) {
            aggregate_on_tensor_cores<F, kVectorised>(
                direction, first_node + n, neighbours, feature,
                coefficients + layout.slot(first_label), layout.columns, sums, also);
          };
          if (has_bias) {
            float of_labels[kTiles] = {};
            aggregate([&](const auto(&of_edge)[4]) {
#pragma unroll
              for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) of_labels[tile] += F::coefficient(of_edge[i], tile);
              }
            });
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
              const float sum = warp_sum<4>(of_labels[tile]);
              if (lane_index() % 4 == 0) coefficient_sums[n][tile * 8 + group] = sum;
            }
          } else {
            aggregate([](const auto&) {});
          }
          const float scale = aggregate_scale(direction, first_node + n);
          for_each_label<F>(sums, [&](int tile, int label, float (&values)[F::kVector]) {
#pragma unroll
            for (float& value : values)
              value = feature < direction.num_features ? scale * value : 0;
            T* row = of_node + (tile * 8 + label) * kFeatures;
            *reinterpret_cast<uint4*>(row + group_place(group, label) * F::kVector) =
                F::packed(values);
          });
        } else {
#pragma unroll 1
          for (int i = lane_index(); i < kLabels * kFeatures; i += kWarpSize) of_node[i] = T(0.0f);
        }
      }
      __syncthreads();
      for (int first_receiver = 0; first_receiver < num_labels; first_receiver += 8) {
        float sums[4];
        contract_on_tensor_cores<kLabels, kVectorised>(
            direction, first_feature, num_labels, first_label, first_receiver, aggregates, sums);
#pragma unroll
        for (int i = 0; i < 4; ++i) partial[warp][fragment_row(i)][fragment_column(i)] = sums[i];
        __syncthreads();
        const int n = threadIdx.x / 8;
        const int receiver = first_receiver + threadIdx.x % 8;
        if (first_node + n < num_nodes && receiver < num_labels) {
          float sum = 0;
          for (int w = 0; w < kWarpsPerBlock; ++w) sum += partial[w][n][threadIdx.x % 8];
          sum /= aggregate_scale(direction, first_node + n);
          if (has_bias) {
            const T* bias = direction.bias + direction.pair(receiver, first_label);
            const int last = num_labels - 1 - first_label;
#pragma unroll
            for (int j = 0; j < kLabels; ++j) {  // loads do not wait for conditions
              const float value = bias[min(j, last) * direction.label_step];
              if (j <= last) sum += value * coefficient_sums[n][j];
            }
          }
          float* message = messages + (split * num_nodes + first_node + n) * num_labels + receiver;
          *message = first_label == 0 ? sum : *message + sum;
        }
        __syncthreads();
      }
    }
  }
}

template <class T>
void launch_tensor_messages(const MessageSplits<T>& splits, int64_t num_nodes, int64_t num_labels,
                            const T* coefficients,  // [N, columns]
                            float* messages,        // [splits, N, K]
                            void* stream) {
  dispatch_kernel<T>(num_labels, splits.vectorised(), [&](auto labels, auto vectorised) {
    launch_early("messages", tensor_messages_kernel<labels(), vectorised(), T>,
                 grid_size(splits.num_blocks(num_nodes), 1), kThreadsPerBlock,
                 kTensorNodes * kNodePitch<T, labels()> * sizeof(T), stream, splits, num_nodes,
                 static_cast<int>(num_labels), CoefficientLayout<T>(num_labels), coefficients,
                 messages);
  });
}

}  // namespace deepcrf::cuda
