#include "ops/pairwise_nll.h"

#include <algorithm>

#include "core/workspace.h"
#include "cuda/launch.cuh"
#include "cuda/log_sum_exp.cuh"
#include "cuda/tensor_fragments.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warps.cuh"
#include "ops/pairwise_nll_chunk.h"

namespace deepcrf::cuda {

namespace {

// Elements of 16 bytes, which one thread moves at once.
template <class T>
constexpr int kRowVector = 16 / sizeof(T);

// Whether the projections of nodes may be read by vectors.
template <class T>
bool rows_are_vectors(const FactoredPotential<T>& potential) {
  constexpr int V = kRowVector<T>;
  return potential.num_features % V == 0 && is_aligned(potential.source, V) &&
         is_aligned(potential.target, V);
}

// Losses of a chunk of edges and, where `gradient` is given, dL/denergies,
// zeros past K * K. One warp an edge, each lane kCount energies at a time: as
// many begin at a multiple of their size.
template <int kCount, class T>
__global__ void losses_kernel(GraphView graph, EdgeLabels labels, EdgeChunk chunk, int num_labels,
                              int pitch,                          // of rows of energies, >= K * K
                              const T* energies,                  // [C, pitch]
                              const Accumulator<T>* edge_weight,  // [E], or null: all ones
                              Accumulator<T>* losses,             // [E]
                              T* gradient) {  // [C, pitch], or null; may be the energies
  using A = Accumulator<T>;
  constexpr int kStep = kWarpSize * kCount;
  const int pairs = num_labels * num_labels;
  for (int64_t i = first_warp(); i < chunk.count; i += num_warps()) {
    const int64_t e = chunk.first + i;
    const int64_t first = labels.labels[graph.sources[e]];
    const int64_t second = labels.labels[graph.targets[e]];
    T* out = gradient == nullptr ? nullptr : gradient + i * pitch;
    A values[kCount];
    if (first == labels.ignore_index || second == labels.ignore_index) {
      if (lane_index() == 0) losses[e] = 0;
#pragma unroll
      for (A& value : values) value = 0;
      for (int pair = lane_index() * kCount; out != nullptr && pair < pitch; pair += kStep) {
        store_values(out + pair, kCount, true, values);
      }
      continue;
    }
    const T* row = energies + i * pitch;
    const int truth = static_cast<int>(first) * num_labels + static_cast<int>(second);
    const A truth_energy = row[truth];
    const auto load = [&](int pair, auto& loaded) {
      load_values(row + pair, pairs - pair, true, loaded);
    };
    const Partition<A> partition = warp_partition<kCount, A>(pairs, load);
    if (lane_index() == 0) losses[e] = partition.negative_log(truth_energy);
    if (out == nullptr) continue;
    const A weight = edge_weight == nullptr ? A(1) : edge_weight[e];
    const A scale = -weight * partition.inverse;
    const int whole = pairs - pairs % kCount;
    __syncwarp();  // every lane has read the energy of the truth
    for (int pair = lane_index() * kCount; pair < whole; pair += kStep) {
      load(pair, values);
#pragma unroll
      for (A& value : values) value = scale * exponential(partition.lowest - value);
      store_values(out + pair, kCount, true, values);
    }
#pragma unroll 1
    for (int pair = whole + lane_index(); pair < pitch; pair += kWarpSize) {
      const A value = pair < pairs ? scale * exponential(partition.lowest - A(row[pair])) : A(0);
      out[pair] = narrowed<T>(value);
    }
    __syncwarp();
    if (lane_index() == 0) {
      out[truth] = narrowed<T>(weight * (1 - partition.probability(truth_energy)));
    }
  }
}

template <class T>
void launch_losses(const GraphView& graph, const EdgeLabels& labels, const EdgeChunk& chunk,
                   int64_t num_labels, int64_t pitch, const void* energies, const void* edge_weight,
                   void* losses, void* gradient, const ExecutionContext& ctx) {
  constexpr int V = kRowVector<T>;
  const auto* rows = static_cast<const T*>(energies);
  auto* out = static_cast<T*>(gradient);
  const bool vectorised = pitch % V == 0 && is_aligned(rows, V) && is_aligned(out, V);
  launch("losses", vectorised ? losses_kernel<V, T> : losses_kernel<1, T>,
         grid_size(chunk.count, kWarpsPerBlock), kThreadsPerBlock, 0, ctx.stream, graph, labels,
         chunk, static_cast<int>(num_labels), static_cast<int>(pitch), rows,
         static_cast<const Accumulator<T>*>(edge_weight), static_cast<Accumulator<T>*>(losses),
         out);
}

// A row holds the D features of the hidden vector, a one for the bias, then zeros. One warp an
// edge.
template <bool kVectorised, class T>
__global__ void hidden_kernel(GraphView graph, EdgeChunk chunk,
                              const T* source,  // [N, D]
                              const T* target,  // [N, D]
                              int64_t num_features, int64_t pitch,
                              T* hidden) {  // [C, pitch]
  using A = Accumulator<T>;
  constexpr int V = kRowVector<T>;
  for (int64_t i = first_warp(); i < chunk.count; i += num_warps()) {
    const T* first_row = source + graph.sources[chunk.first + i] * num_features;
    const T* second_row = target + graph.targets[chunk.first + i] * num_features;
    T* row = hidden + i * pitch;
    for (int64_t d = lane_index() * V; d < num_features; d += kWarpSize * V) {
      const int64_t valid = num_features - d;
      if constexpr (kVectorised && sizeof(T) == 2) {  // in pairs
        using F = HalfFragments<T>;
        const auto first = F::template load<true>(first_row + d, valid);
        const auto second = F::template load<true>(second_row + d, valid);
        const auto sum = F::hidden(first, second);
        store_16_bytes(row + d, {sum.pairs[0], sum.pairs[1], sum.pairs[2], sum.pairs[3]});
      } else {
        A first[V], second[V];
        load_values(first_row + d, valid, kVectorised, first);
        load_values(second_row + d, valid, kVectorised, second);
#pragma unroll
        for (int v = 0; v < V; ++v) first[v] = relu(first[v] + second[v]);
        if constexpr (kVectorised) {
          store_vector(row + d, first);
        } else {
          store_values(row + d, valid, false, first);
        }
      }
    }
#pragma unroll 1
    for (int64_t d = num_features + lane_index(); d < pitch; d += kWarpSize) {
      row[d] = T(d == num_features ? A(1) : A(0));
    }
  }
}

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
template <bool kVectorised, class T>
__global__ void __launch_bounds__(kReduceThreads, 3)
    reduce_kernel(GraphView graph, EdgeChunk chunk,
                  const T* source,  // [N, D]
                  const T* target,  // [N, D]
                  int64_t num_features,
                  int64_t pitch,                  // a multiple of kRowVector
                  const T* grad_hidden,           // [C, pitch]
                  Accumulator<T>* grad_source,    // [N, D]
                  Accumulator<T>* grad_target) {  // [N, D]
  using A = Accumulator<T>;
  constexpr int V = kRowVector<T>;
  using Vector = Packed<T, V>;
  __shared__ A partial[kReduceWarps][kReduceSlice<T>];
  const bool along = blockIdx.y == 0;
  const T* self = along ? source : target;
  const T* other = along ? target : source;
  A* gradient = along ? grad_source : grad_target;
  const int64_t* row_offsets = along ? graph.row_offsets : graph.reverse_row_offsets;
  const int32_t* neighbours = along ? graph.targets : graph.reverse_sources;
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
    const int64_t valid = num_features - feature;
    const auto load_row = [&](const T* features) {
      Vector row;
      if constexpr (kVectorised) {
        row = *reinterpret_cast<const Vector*>(features + feature);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) row.values[v] = v < valid ? features[feature + v] : T(0.0f);
      }
      return row;
    };
    A sums[V] = {};
    if (valid > 0) {
      const Vector own = load_row(self + node * num_features);
      for (int64_t i = begin + warp; i < end; i += kReduceWarps * kReduceBatch) {
        int64_t edges[kReduceBatch];
        int32_t nodes[kReduceBatch];
        Vector of_other[kReduceBatch], of_gradient[kReduceBatch];
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          const int64_t at = i + b * kReduceWarps < end ? i + b * kReduceWarps : i;
          edges[b] = along ? at : graph.reverse_edges[at];
          nodes[b] = neighbours[at];
        }
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          of_other[b] = load_row(other + nodes[b] * num_features);
          of_gradient[b] = *reinterpret_cast<const Vector*>(
              grad_hidden + (edges[b] - chunk.first) * pitch + feature);
        }
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          const bool there = i + b * kReduceWarps < end;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const bool positive = A(own.values[v]) + A(of_other[b].values[v]) > 0;
            sums[v] += there && positive ? A(of_gradient[b].values[v]) : A(0);
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

struct LossSums {
  int count;       // of parts, one a block
  double* sums;    // [count]
  int64_t* valid;  // [count]

  LossSums(Workspace& workspace, int64_t num_edges)
      : count(static_cast<int>(
            std::clamp<int64_t>(ceil_div<int64_t>(num_edges, kThreadsPerBlock), 1, 512))),
        sums(workspace.take<double>(count)),
        valid(workspace.take<int64_t>(count)) {}
};

// The sums of `sum` and `valid` over the block, in a fixed order, to thread 0.
__device__ void block_sum(double& sum, int64_t& valid) {
  __shared__ double sums[kWarpsPerBlock];
  __shared__ int64_t counts[kWarpsPerBlock];
  sum = warp_sum(sum);
  valid = warp_sum(valid);
  if (lane_index() == 0) {
    sums[threadIdx.x / kWarpSize] = sum;
    counts[threadIdx.x / kWarpSize] = valid;
  }
  __syncthreads();
  for (int warp = 1; threadIdx.x == 0 && warp < kWarpsPerBlock; ++warp) {
    sum += sums[warp];
    valid += counts[warp];
  }
}

// Sums of losses and numbers of valid edges, a part each block.
template <class A>
__global__ void partial_reduction_kernel(GraphView graph, EdgeLabels labels,
                                         const A* losses,  // [E]
                                         LossSums parts) {
  double sum = 0;
  int64_t valid = 0;
  for (int64_t e = first_thread(); e < graph.num_edges; e += num_threads()) {
    sum += losses[e];
    valid += labels.labels[graph.sources[e]] != labels.ignore_index &&
             labels.labels[graph.targets[e]] != labels.ignore_index;
  }
  block_sum(sum, valid);
  if (threadIdx.x == 0) {
    parts.sums[blockIdx.x] = sum;
    parts.valid[blockIdx.x] = valid;
  }
}

// One block.
template <class A>
__global__ void final_reduction_kernel(LossSums parts, bool mean, A* value, A* factor) {
  double sum = 0;
  int64_t valid = 0;
  for (int i = threadIdx.x; i < parts.count; i += kThreadsPerBlock) {
    sum += parts.sums[i];
    valid += parts.valid[i];
  }
  block_sum(sum, valid);
  if (threadIdx.x == 0) {
    const double count = mean && valid > 0 ? static_cast<double>(valid) : 1;
    *value = static_cast<A>(sum / count);
    *factor = static_cast<A>(1 / count);
  }
}

}  // namespace

int64_t reduce_losses_workspace(int64_t num_edges) {
  Workspace workspace;
  const LossSums parts(workspace, num_edges);
  return workspace.used();
}

void reduce_losses(const GraphView& graph, const EdgeLabels& labels, DType dtype,
                   const void* losses, bool mean, void* value, void* factor,
                   const ExecutionContext& ctx) {
  dispatch_native_floating(dtype, "losses", [&](auto tag) {
    using A = decltype(tag);
    Workspace workspace(ctx.workspace, ctx.workspace_bytes);
    const LossSums parts(workspace, graph.num_edges);
    launch("partial_reduction", partial_reduction_kernel<A>, parts.count, kThreadsPerBlock, 0,
           ctx.stream, graph, labels, static_cast<const A*>(losses), parts);
    launch("final_reduction", final_reduction_kernel<A>, 1, kThreadsPerBlock, 0, ctx.stream, parts,
           mean, static_cast<A*>(value), static_cast<A*>(factor));
  });
}

void pairwise_nll_table(const GraphView& graph, const AnyTablePotential& potential,
                        const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    launch_losses<decltype(tag)>(graph, labels, {0, graph.num_edges}, potential.num_labels,
                                 potential.num_labels * potential.num_labels, potential.energies,
                                 nullptr, losses, nullptr, ctx);
  });
}

void pairwise_nll_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                 const EdgeLabels& labels, const void* edge_weight, void* losses,
                                 void* grad_energies, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    launch_losses<decltype(tag)>(graph, labels, {0, graph.num_edges}, potential.num_labels,
                                 potential.num_labels * potential.num_labels, potential.energies,
                                 edge_weight, losses, grad_energies, ctx);
  });
}

void edge_hidden(const GraphView& graph, const AnyFactoredPotential& potential,
                 const EdgeChunk& chunk, int64_t pitch, void* hidden, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    const FactoredPotential<T> factored = potential.as<T>();
    T* out = static_cast<T*>(hidden);
    constexpr int V = kRowVector<T>;
    const bool vectorised = rows_are_vectors(factored) && pitch % V == 0 && is_aligned(out, V);
    launch("edge_hidden", vectorised ? hidden_kernel<true, T> : hidden_kernel<false, T>,
           grid_size(chunk.count, kWarpsPerBlock), kThreadsPerBlock, 0, ctx.stream, graph, chunk,
           factored.source, factored.target, factored.num_features, pitch, out);
  });
}

void chunk_losses(const GraphView& graph, DType dtype, int64_t num_labels, int64_t pitch,
                  const EdgeLabels& labels, const EdgeChunk& chunk, const void* edge_weight,
                  void* energies, void* losses, bool differentiate, const ExecutionContext& ctx) {
  dispatch_floating(dtype, "energies", [&](auto tag) {
    launch_losses<decltype(tag)>(graph, labels, chunk, num_labels, pitch, energies, edge_weight,
                                 losses, differentiate ? energies : nullptr, ctx);
  });
}

void reduce_edges(const GraphView& graph, const AnyFactoredPotential& potential,
                  const EdgeChunk& chunk, int64_t pitch, const void* grad_hidden, void* grad_source,
                  void* grad_target, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    const FactoredPotential<T> factored = potential.as<T>();
    const int64_t slices = ceil_div<int64_t>(factored.num_features, kReduceSlice<T>);
    launch("reduce_edges",
           rows_are_vectors(factored) ? reduce_kernel<true, T> : reduce_kernel<false, T>,
           dim3(grid_size(graph.num_nodes * slices, 1), 2), kReduceThreads, 0, ctx.stream, graph,
           chunk, factored.source, factored.target, factored.num_features, pitch,
           static_cast<const T*>(grad_hidden), static_cast<Accumulator<T>*>(grad_source),
           static_cast<Accumulator<T>*>(grad_target));
  });
}

}  // namespace deepcrf::cuda
