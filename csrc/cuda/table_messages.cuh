// Messages over tables of energies, and their gradient. A table is read once, along the edges: what
// an edge sends to its target waits in a row of its own, and is summed there in the order of the
// edges.
#pragma once

#include "core/graph_view.h"
#include "cuda/label_blocks.cuh"
#include "cuda/launch.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

// What nodes receive along their edges, and what these send. One block a node, whose warps share
// out the edges: a lane has one label of the targets, and kLabels of the node's own at a time.
template <int kLabels, class T>
__global__ void __launch_bounds__(kThreadsPerBlock, 4)
    table_along_kernel(GraphView graph,
                       const T* energies,  // [E, K, K]
                       int num_labels,
                       const Accumulator<T>* marginals,  // [N, K]
                       Accumulator<T>* sent,             // [E, K]
                       Accumulator<T>* messages) {       // [N, K]
  wait_for_former_kernels();
  using A = Accumulator<T>;
  constexpr int kPadded = kLabels <= 8 ? 8 : kLabels <= 16 ? 16 : 32;
  __shared__ A partial[kWarpsPerBlock][kLabels];
  const int K = num_labels;
  const int warp = threadIdx.x / kWarpSize;
  for (int64_t p = blockIdx.x; p < graph.num_nodes; p += gridDim.x) {
    const int64_t end = graph.row_offsets[p + 1];
    for (int first_label = 0; first_label < K; first_label += kLabels) {
      const int labels = min(kLabels, K - first_label);
      A own[kLabels];
#pragma unroll
      for (int i = 0; i < kLabels; ++i) {
        own[i] = i < labels ? marginals[p * K + first_label + i] : A(0);
      }
      A received = 0;  // at label first_label + lane % kPadded
      for (int first_column = 0; first_column < K; first_column += kWarpSize) {
        // No load depends on a condition: what is past the last label or column is the last, and
        // counts for nothing, also where it is infinite.
        const bool valid = first_column + lane_index() < K;
        const int column = valid ? first_column + lane_index() : K - 1;
        A sums[kPadded] = {};
        for (int64_t e = graph.row_offsets[p] + warp; e < end; e += kWarpsPerBlock) {
          const T* of_label = energies + (e * K + first_label) * K + column;
          A values[kLabels];
#pragma unroll
          for (int i = 0; i < kLabels; ++i) {
            values[i] = *of_label;
            of_label += i + 1 < labels ? K : 0;
          }
#pragma unroll
          for (int i = 0; i < kLabels; ++i) values[i] = i < labels ? values[i] : A(0);
          const A of_target = marginals[int64_t{graph.targets[e]} * K + column];
          A sending = 0;
#pragma unroll
          for (int i = 0; i < kLabels; ++i) {
            sums[i] += values[i] * of_target;
            sending += values[i] * own[i];
          }
          A* to = sent + e * K + column;
          if (valid) *to = first_label == 0 ? sending : *to + sending;
        }
#pragma unroll
        for (A& sum : sums) sum = valid ? sum : A(0);
        received += warp_sums<kPadded>(sums);
      }
      if (lane_index() < kLabels) partial[warp][lane_index()] = received;
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < labels) {
        A sum = 0;
#pragma unroll
        for (int w = 0; w < kWarpsPerBlock; ++w) sum += partial[w][threadIdx.x];
        messages[p * K + first_label + threadIdx.x] = sum;
      }
      __syncthreads();
    }
  }
}

// Adds what nodes receive against their edges. One warp a node, a lane each label.
template <class A>
__global__ void table_against_kernel(GraphView graph, int num_labels,
                                     const A* sent,  // [E, K]
                                     A* messages) {  // [N, K]
  wait_for_former_kernels();
  for (int64_t q = first_warp(); q < graph.num_nodes; q += num_warps()) {
    const int64_t begin = graph.reverse_row_offsets[q];
    const int64_t end = graph.reverse_row_offsets[q + 1];
    for (int k = lane_index(); k < num_labels; k += kWarpSize) {
      A sum = 0;
#pragma unroll 8
      for (int64_t i = begin; i < end; ++i) sum += sent[graph.reverse_edges[i] * num_labels + k];
      messages[q * num_labels + k] += sum;
    }
  }
}

// dL/dV_pq(k, j) = grad_p[k] Q_q[j] + Q_p[k] grad_q[j], summed over messages. One warp an edge, a
// lane each label of the target.
template <class T>
__global__ void table_gradient_kernel(GraphView graph, int num_labels, int64_t num_messages,
                                      const Accumulator<T>* marginals,      // [M, N, K]
                                      const Accumulator<T>* grad_messages,  // [M, N, K]
                                      T* grad_energies) {                   // [E, K, K]
  wait_for_former_kernels();
  using A = Accumulator<T>;
  const int K = num_labels;
  const int64_t step = graph.num_nodes * K;
  for (int64_t e = first_warp(); e < graph.num_edges; e += num_warps()) {
    const int64_t source = int64_t{graph.sources[e]} * K;
    const int64_t target = int64_t{graph.targets[e]} * K;
    for (int j = lane_index(); j < K; j += kWarpSize) {
      T* out = grad_energies + e * K * K + j;
      for (int k = 0; k < K; ++k, out += K) {
        const A *of_source = marginals + source + k, *grad_of_source = grad_messages + source + k;
        const A *of_target = marginals + target + j, *grad_of_target = grad_messages + target + j;
        A sum = *grad_of_source * *of_target + *of_source * *grad_of_target;
        for (int64_t i = step; i < num_messages * step; i += step) {
          sum += grad_of_source[i] * of_target[i] + of_source[i] * grad_of_target[i];
        }
        *out = narrowed<T>(sum);
      }
    }
  }
}

template <class T>
void launch_table_messages(const GraphView& graph,
                           const T* energies,  // [E, K, K]
                           int64_t num_labels,
                           const Accumulator<T>* marginals,  // [N, K]
                           Accumulator<T>* sent,             // [E, K]
                           Accumulator<T>* messages,         // [N, K]
                           void* stream) {
  const int K = static_cast<int>(num_labels);
  dispatch_labels<T>(num_labels, [&](auto labels) {
    launch_early("table_along", table_along_kernel<labels(), T>, grid_size(graph.num_nodes, 1),
                 kThreadsPerBlock, 0, stream, graph, energies, K, marginals, sent, messages);
  });
  launch_early("table_against", table_against_kernel<Accumulator<T>>,
               grid_size(graph.num_nodes, kWarpsPerBlock), kThreadsPerBlock, 0, stream, graph, K,
               static_cast<const Accumulator<T>*>(sent), messages);
}

}  // namespace deepcrf::cuda
