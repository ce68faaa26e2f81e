// Sums at nodes of what the hidden vectors of their edges get.
#pragma once

#include "core/graph_view.h"
#include "cuda/arithmetic.cuh"
#include "cuda/edge_losses.cuh"
#include "cuda/hidden_masks.cuh"

namespace deepcrf::cuda {

// The first of count ascending values that is not below `bound`; most are all on one side of it.
__device__ int64_t lower_bound(const int64_t* values, int64_t count, int64_t bound) {
  if (count == 0 || values[0] >= bound) return 0;
  if (values[count - 1] < bound) return count;
  int64_t low = 0;
  while (low < count) {
    const int64_t middle = (low + count) / 2;
    if (values[middle] < bound) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return low;
}

// Warps of a block share out the edges of a node, and each has several of them
// in flight.
constexpr int kReduceWarps = 8;
constexpr int kReduceBatch = 4;
constexpr int kReduceThreads = kReduceWarps * kWarpSize;
// Features of a block.
template <class T>
constexpr int kReduceSlice = kWarpSize * kRowVector<T>;

// The sums of edge gradients, where the hidden vector is positive, at the sources (blockIdx.y = 0)
// and at the targets; the first chunk sets them, others add. One block a node and slice of the
// features; the order of its sums is fixed.
template <class T>
__global__ void __launch_bounds__(kReduceThreads, 3)
    reduce_kernel(GraphView graph, EdgeChunk chunk, int64_t num_features,
                  int64_t pitch,                  // a multiple of kRowVector
                  const T* grad_hidden,           // [C, pitch]
                  const uint8_t* masks,           // [C, mask_bytes]
                  Accumulator<T>* grad_source,    // [N, D]
                  Accumulator<T>* grad_target) {  // [N, D]
  wait_for_former_kernels();
  using A = Accumulator<T>;
  constexpr int V = kRowVector<T>;
  using Vector = Packed<T, V>;
  __shared__ A partial[kReduceWarps][kReduceSlice<T>];
  const bool along = blockIdx.y == 0;
  A* gradient = along ? grad_source : grad_target;
  const int64_t* row_offsets = along ? graph.row_offsets : graph.reverse_row_offsets;
  const int warp = threadIdx.x / kWarpSize;
  const int64_t slices = ceil_div<int64_t>(num_features, kReduceSlice<T>);
  const int64_t chunk_end = chunk.first + chunk.count;
  for (int64_t task = blockIdx.x; task < graph.num_nodes * slices; task += gridDim.x) {
    const int64_t node = task / slices;
    const int64_t first_feature = task % slices * kReduceSlice<T>;
    // Of the node's edges in the chunk, as positions in its row.
    int64_t begin = row_offsets[node];
    int64_t end = row_offsets[node + 1];
    if (along) {
      begin = max(begin, chunk.first);
      end = min(end, chunk_end);
    } else {
      const int64_t* edges = graph.reverse_edges + begin;
      const int64_t count = end - begin;
      end = begin + lower_bound(edges, count, chunk_end);
      begin += lower_bound(edges, count, chunk.first);
    }
    if (begin >= end && chunk.first > 0) continue;  // the whole block does
    const int64_t feature = first_feature + lane_index() * V;
    A sums[V] = {};
    if (feature < num_features) {
      const ByteRows<T> gradient_rows(grad_hidden + feature, pitch);
      const ByteRows<uint8_t> mask_rows(masks + feature / V, mask_bytes<T>(num_features));
      for (int64_t i = begin + warp; i < end; i += kReduceWarps * kReduceBatch) {
        int32_t edges[kReduceBatch];  // of the chunk
        Vector rows[kReduceBatch];
        unsigned positive[kReduceBatch];
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          const int64_t at = i + b * kReduceWarps < end ? i + b * kReduceWarps : i;
          edges[b] = static_cast<int32_t>((along ? at : graph.reverse_edges[at]) - chunk.first);
        }
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          rows[b] = *reinterpret_cast<const Vector*>(gradient_rows[edges[b]]);
          positive[b] = *mask_rows[edges[b]];
        }
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          if (i + b * kReduceWarps >= end) positive[b] = 0;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (positive[b] >> mask_bit<T>(v) & 1) sums[v] += A(rows[b].values[v]);
          }
        }
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) partial[warp][lane_index() * V + v] = sums[v];
    __syncthreads();
    for (int f = threadIdx.x; f < kReduceSlice<T>; f += kReduceThreads) {
      if (first_feature + f >= num_features) break;
      A sum = 0;
#pragma unroll
      for (int w = 0; w < kReduceWarps; ++w) sum += partial[w][f];
      A& total = gradient[node * num_features + first_feature + f];
      total = chunk.first > 0 ? total + sum : sum;
    }
    __syncthreads();
  }
}

template <class T>
void launch_edge_sums(const GraphView& graph, const EdgeChunk& chunk, int64_t num_features,
                      int64_t pitch,
                      const T* grad_hidden,         // [C, pitch]
                      const uint8_t* masks,         // [C, mask_bytes]
                      Accumulator<T>* grad_source,  // [N, D]
                      Accumulator<T>* grad_target,  // [N, D]
                      void* stream) {
  const int64_t slices = ceil_div<int64_t>(num_features, kReduceSlice<T>);
  launch_early("reduce_edges", reduce_kernel<T>, dim3(grid_size(graph.num_nodes * slices, 1), 2),
               kReduceThreads, 0, stream, graph, chunk, num_features, pitch, grad_hidden, masks,
               grad_source, grad_target);
}

}  // namespace deepcrf::cuda
