// Factored messages on the tensor cores: of bfloat16 and float16, and of float32 by TensorFloat32.
//
// Four warps receive for 16 nodes over one block of features. They share out the nodes to form A of
// each in shared memory; then the block contracts A of all 16 with the weight, warps sharing out
// the neighbours' labels.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/tensor_halves.cuh"
#include "cuda/tensor_tf32.cuh"

namespace deepcrf::cuda {

constexpr int kTensorNodes = MessageBlock<bfloat16>::kNodes;

// One block a split and 16 nodes.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock, kVectorised ? 4 : 3)
    tensor_messages_kernel(const __grid_constant__ MessageSplits<T> splits, int64_t num_nodes,
                           int num_labels, CoefficientLayout<T> layout,
                           const T* coefficients,  // [N, columns]
                           float* messages) {      // [splits, N, K]
  wait_for_former_kernels();
  static_assert(kOnTensorCores<T> && kThreadsPerBlock == kTensorNodes * 8);
  __shared__ float partial[kWarpsPerBlock][kTensorNodes][8];
  __shared__ float coefficient_sums[kTensorNodes][kLabels];
  T* aggregates = dynamic_shared<T>();  // [16, kNodePitch<T, kLabels>]
  const int warp = threadIdx.x / kWarpSize;
  const int64_t node_blocks = ceil_div<int64_t>(num_nodes, kTensorNodes);
  for (int64_t block = blockIdx.x; block < splits.count() * node_blocks; block += gridDim.x) {
    const int split = static_cast<int>(block / node_blocks);
    const int64_t first_node = block % node_blocks * kTensorNodes;
    const int index = splits.direction_of(split);
    const Direction<T>& direction = splits.directions[index];
    const bool has_bias = split == splits.first_split[index];
    const int64_t first_feature =
        static_cast<int64_t>(split - splits.first_split[index]) * MessageBlock<T>::kFeatures;
    for (int first_label = 0; first_label < num_labels; first_label += kLabels) {
      for (int n = warp; n < kTensorNodes; n += kWarpsPerBlock) {
        T* of_node = aggregates + n * kNodePitch<T, kLabels>;
        if (first_node + n < num_nodes) {
          aggregate_on_tensor_cores<kLabels, kVectorised>(
              direction, first_node + n, first_feature, coefficients + layout.slot(first_label),
              layout.columns, of_node, has_bias ? coefficient_sums[n] : nullptr);
        } else {
          for (int i = lane_index(); i < kLabels * MessageBlock<T>::kFeatures; i += kWarpSize) {
            of_node[i] = T(0.0f);
          }
        }
      }
      __syncthreads();
      for (int first_receiver = 0; first_receiver < num_labels; first_receiver += 8) {
        float sums[4] = {};
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
          for (int j = 0; has_bias && j < kLabels && first_label + j < num_labels; ++j) {
            sum += float(direction.bias[direction.pair(receiver, first_label + j)]) *
                   coefficient_sums[n][j];
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
