#include "ops/pairwise_nll_chunk.h"

#include "cuda/edge_losses.cuh"
#include "cuda/edge_sums.cuh"
#include "cuda/tensor_fragments.cuh"

namespace deepcrf::cuda {

namespace {

// The rows that products read: weight and bias, [K * K, D + 1], padded with zeros.
template <class T>
__global__ void pack_weight_kernel(const T* weight,  // [K * K, D]
                                   const T* bias,    // [K * K]
                                   int64_t pairs, int64_t num_features, int64_t num_rows,
                                   int64_t pitch,
                                   T* rows) {  // [num_rows, pitch]
  wait_for_former_kernels();
  for (int64_t i = first_thread(); i < num_rows * pitch; i += num_threads()) {
    const int64_t pair = i / pitch, d = i % pitch;
    T value = T(0.0f);
    if (pair < pairs && d < num_features) value = weight[pair * num_features + d];
    if (pair < pairs && d == num_features) value = bias[pair];
    rows[i] = value;
  }
}

template <class A>
__global__ void unpack_weight_kernel(const A* rows,  // [K * K and more, pitch]
                                     int64_t pairs, int64_t num_features, int64_t pitch,
                                     A* weight,  // [K * K, D]
                                     A* bias) {  // [K * K]
  wait_for_former_kernels();
  const int64_t columns = num_features + 1;
  for (int64_t i = first_thread(); i < pairs * columns; i += num_threads()) {
    const int64_t pair = i / columns, d = i % columns;
    A* to = d < num_features ? weight + pair * num_features + d : bias + pair;
    *to = rows[pair * pitch + d];
  }
}

// Whether the projections of nodes may be read by vectors.
template <class T>
bool rows_are_vectors(const FactoredPotential<T>& potential) {
  constexpr int V = kRowVector<T>;
  return potential.num_features % V == 0 && is_aligned(potential.source, V) &&
         is_aligned(potential.target, V);
}

// A row holds the D features of the hidden vector, a one for the bias, then zeros. One warp an
// edge.
template <bool kVectorised, class T>
__global__ void hidden_kernel(GraphView graph, EdgeChunk chunk,
                              const T* source,  // [N, D]
                              const T* target,  // [N, D]
                              int num_features, int pitch,
                              T* hidden,         // [C, pitch]
                              uint8_t* masks) {  // [C, mask_bytes]
  wait_for_former_kernels();
  using A = Accumulator<T>;
  constexpr int V = kRowVector<T>;
  const ByteRows<T> sources(source, num_features), targets(target, num_features);
  for (int64_t i = first_warp(); i < chunk.count; i += num_warps()) {
    const T* first_row = sources[graph.sources[chunk.first + i]];
    const T* second_row = targets[graph.targets[chunk.first + i]];
    T* row = hidden + i * pitch;
    uint8_t* mask_row = masks + i * mask_bytes<T>(num_features);
    for (int vector = lane_index(); vector * V < num_features; vector += kWarpSize) {
      const int d = vector * V;
      const int valid = num_features - d;
      unsigned mask;
      if constexpr (kVectorised && sizeof(T) == 2) {  // in pairs
        using F = HalfFragments<T>;
        const auto first = F::template load<true>(first_row + d, valid);
        const auto second = F::template load<true>(second_row + d, valid);
        const auto sum = F::hidden(first, second);
        store_16_bytes(row + d, {sum.pairs[0], sum.pairs[1], sum.pairs[2], sum.pairs[3]});
        mask = positive_halves<T>(sum.pairs);
      } else {
        A first[V], second[V];
        load_values(first_row + d, valid, kVectorised, first);
        load_values(second_row + d, valid, kVectorised, second);
        mask = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          first[v] = relu(first[v] + second[v]);
          if (first[v] != 0) mask |= 1u << mask_bit<T>(v);
        }
        if constexpr (kVectorised) {
          store_vector(row + d, first);
        } else {
          store_values(row + d, valid, false, first);
        }
      }
      mask_row[vector] = static_cast<uint8_t>(mask);
    }
#pragma unroll 1
    for (int d = num_features + lane_index(); d < pitch; d += kWarpSize) {
      row[d] = T(d == num_features ? A(1) : A(0));
    }
  }
}

}  // namespace

void pack_weight(const AnyFactoredPotential& potential, int64_t num_rows, int64_t pitch, void* rows,
                 const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    const FactoredPotential<T> factored = potential.as<T>();
    launch_early("pack_weight", pack_weight_kernel<T>,
                 grid_size(num_rows * pitch, kThreadsPerBlock), kThreadsPerBlock, 0, ctx.stream,
                 factored.weight, factored.bias, factored.num_labels * factored.num_labels,
                 factored.num_features, num_rows, pitch, static_cast<T*>(rows));
  });
}

void unpack_weight(DType dtype, const void* rows, int64_t num_labels, int64_t num_features,
                   int64_t pitch, void* weight, void* bias, const ExecutionContext& ctx) {
  dispatch_native_floating(dtype, "rows", [&](auto tag) {
    using A = decltype(tag);
    const int64_t pairs = num_labels * num_labels;
    launch_early("unpack_weight", unpack_weight_kernel<A>,
                 grid_size(pairs * (num_features + 1), kThreadsPerBlock), kThreadsPerBlock, 0,
                 ctx.stream, static_cast<const A*>(rows), pairs, num_features, pitch,
                 static_cast<A*>(weight), static_cast<A*>(bias));
  });
}

void edge_hidden(const GraphView& graph, const AnyFactoredPotential& potential,
                 const EdgeChunk& chunk, int64_t pitch, void* hidden, uint8_t* masks,
                 const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    const FactoredPotential<T> factored = potential.as<T>();
    T* out = static_cast<T*>(hidden);
    constexpr int V = kRowVector<T>;
    const bool vectorised = rows_are_vectors(factored) && pitch % V == 0 && is_aligned(out, V);
    launch_early("edge_hidden", vectorised ? hidden_kernel<true, T> : hidden_kernel<false, T>,
                 grid_size(chunk.count, kWarpsPerBlock), kThreadsPerBlock, 0, ctx.stream, graph,
                 chunk, factored.source, factored.target, static_cast<int>(factored.num_features),
                 static_cast<int>(pitch), out, masks);
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

void reduce_edges(const GraphView& graph, DType dtype, int64_t num_features, const EdgeChunk& chunk,
                  int64_t pitch, const void* grad_hidden, const uint8_t* masks, void* grad_source,
                  void* grad_target, const ExecutionContext& ctx) {
  dispatch_floating(dtype, "grad_hidden", [&](auto tag) {
    using T = decltype(tag);
    launch_edge_sums(graph, chunk, num_features, pitch, static_cast<const T*>(grad_hidden), masks,
                     static_cast<Accumulator<T>*>(grad_source),
                     static_cast<Accumulator<T>*>(grad_target), ctx.stream);
  });
}

}  // namespace deepcrf::cuda
