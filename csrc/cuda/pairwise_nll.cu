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

// The first of count ascending values that is not below `bound`.
__device__ int64_t lower_bound(const int64_t* values, int64_t count, int64_t bound) {
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

// Adds edge gradients, where the hidden vector is positive, to the sources
// (`along`), or to the targets. One block a node and slice of the features; the
// order of its sums is fixed.
template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(GraphView graph, bool along, EdgeChunk chunk, int64_t num_features,
                  int64_t pitch,               // a multiple of kRowVector
                  const T* hidden,             // [C, pitch]
                  const T* grad_hidden,        // [C, pitch]
                  Accumulator<T>* gradient) {  // [N, D]
  using A = Accumulator<T>;
  constexpr int V = kRowVector<T>;
  using Vector = Packed<T, V>;
  __shared__ A partial[kReduceWarps][kReduceSlice<T>];
  const int warp = threadIdx.x / kWarpSize;
  const int64_t slices = ceil_div<int64_t>(num_features, kReduceSlice<T>);
  const int64_t chunk_end = chunk.first + chunk.count;
  for (int64_t task = blockIdx.x; task < graph.num_nodes * slices; task += gridDim.x) {
    const int64_t node = task / slices;
    const int64_t first_feature = task % slices * kReduceSlice<T>;
    int64_t begin,
        end;  // of the node's edges in the chunk, as positions in its row
    if (along) {
      begin = max(graph.row_offsets[node], chunk.first);
      end = min(graph.row_offsets[node + 1], chunk_end);
    } else {
      const int64_t row = graph.reverse_row_offsets[node];
      const int64_t count = graph.reverse_row_offsets[node + 1] - row;
      begin = row + lower_bound(graph.reverse_edges + row, count, chunk.first);
      end = row + lower_bound(graph.reverse_edges + row, count, chunk_end);
    }
    if (begin >= end) continue;  // the whole block does
    const int64_t feature = first_feature + lane_index() * V;
    A sums[V] = {};
    if (feature < num_features) {
      for (int64_t i = begin + warp; i < end; i += kReduceWarps * kReduceBatch) {
        int64_t elements[kReduceBatch];
        Vector of_hidden[kReduceBatch], of_gradient[kReduceBatch];
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          const int64_t at = i + b * kReduceWarps < end ? i + b * kReduceWarps : i;
          const int64_t edge = along ? at : graph.reverse_edges[at];
          elements[b] = (edge - chunk.first) * pitch + feature;
        }
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          of_hidden[b] = *reinterpret_cast<const Vector*>(hidden + elements[b]);
          of_gradient[b] = *reinterpret_cast<const Vector*>(grad_hidden + elements[b]);
        }
#pragma unroll
        for (int b = 0; b < kReduceBatch; ++b) {
          const bool valid = i + b * kReduceWarps < end;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            sums[v] += valid && A(of_hidden[b].values[v]) > 0 ? A(of_gradient[b].values[v]) : A(0);
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
      gradient[node * num_features + first_feature + f] += sum;
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
    const bool vectorised = factored.num_features % V == 0 && pitch % V == 0 &&
                            is_aligned(factored.source, V) && is_aligned(factored.target, V) &&
                            is_aligned(out, V);
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

void reduce_edges(const GraphView& graph, DType dtype, int64_t num_features, int64_t pitch,
                  const EdgeChunk& chunk, const void* hidden, const void* grad_hidden,
                  void* grad_source, void* grad_target, const ExecutionContext& ctx) {
  dispatch_floating(dtype, "hidden", [&](auto tag) {
    using T = decltype(tag);
    const int64_t slices = ceil_div<int64_t>(num_features, kReduceSlice<T>);
    const auto reduce = [&](bool along, void* gradient) {
      launch("reduce_edges", reduce_kernel<T>, grid_size(graph.num_nodes * slices, 1),
             kReduceThreads, 0, ctx.stream, graph, along, chunk, num_features, pitch,
             static_cast<const T*>(hidden), static_cast<const T*>(grad_hidden),
             static_cast<Accumulator<T>*>(gradient));
    };
    reduce(true, grad_source);
    reduce(false, grad_target);
  });
}

}  // namespace deepcrf::cuda
