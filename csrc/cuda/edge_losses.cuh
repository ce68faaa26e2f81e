// Losses of edges from their energies, and the gradient of these.
#pragma once

#include <type_traits>

#include "cuda/hidden_masks.cuh"
#include "cuda/launch.cuh"
#include "cuda/log_sum_exp.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warps.cuh"
#include "ops/pairwise_nll_chunk.h"

namespace deepcrf::cuda {

// The energies of an edge, shared out over the lanes of a warp: lane l has those from
// (step * kWarpSize + l) * kCount on. Read as often as they are needed.
template <int kCount, class T>
class LongRow {
 public:
  using A = Accumulator<T>;

  __device__ LongRow(const T* row, int pairs) : row_(row), pairs_(pairs) {}

  __device__ Partition<A> partition() {
    return warp_partition<kCount, A>(pairs_, [&](int pair, auto& loaded) { load(pair, loaded); });
  }

  // out = scale * P(pair), zeros past the last pair; may be the row itself.
  __device__ void store_scaled(const Partition<A>& partition, A scale, int pitch, T* out) {
    scale *= partition.inverse;
    const int whole = pairs_ - pairs_ % kCount;
    A values[kCount];
    for (int pair = lane_index() * kCount; pair < whole; pair += kWarpSize * kCount) {
      load(pair, values);
#pragma unroll
      for (A& value : values) value = scale * exponential(partition.lowest - value);
      store_values(out + pair, kCount, true, values);
    }
#pragma unroll 1
    for (int pair = whole + lane_index(); pair < pitch; pair += kWarpSize) {
      const A value = pair < pairs_ ? scale * exponential(partition.lowest - A(row_[pair])) : A(0);
      out[pair] = narrowed<T>(value);
    }
  }

 private:
  template <class Loaded>
  __device__ void load(int pair, Loaded& loaded) const {
    load_values(row_ + pair, pairs_ - pair, true, loaded);
  }

  const T* row_;
  int pairs_;
};

// The same of few energies, held in registers: each is read once, and so is its exponential formed.
constexpr int kHeldEnergies = 16;  // of a lane

template <int kCount, class T>
class HeldRow {
 public:
  using A = Accumulator<T>;

  __device__ HeldRow(const T* row, int pairs) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int first = first_of(step);
      if (first + kCount <= pairs) {
        load_values(row + first, kCount, true, values_[step]);
      } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          values_[step][i] = first + i < pairs ? A(row[first + i]) : A(INFINITY);
        }
      }
    }
  }

  // The values are then exp(lowest - energy).
  __device__ Partition<A> partition() {
    A lowest = INFINITY;
#pragma unroll
    for (const auto& values : values_) {
#pragma unroll
      for (const A value : values) lowest = lesser(value, lowest);
    }
    lowest = warp_min(lowest);
    A sum = 0;
#pragma unroll
    for (auto& values : values_) {
#pragma unroll
      for (A& value : values) {
        value = exponential_of_negative(lowest - value);
        sum += value;
      }
    }
    sum = warp_sum(sum);
    return {lowest, sum, 1 / sum};
  }

  __device__ void store_scaled(const Partition<A>& partition, A scale, int pitch, T* out) {
    scale *= partition.inverse;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (first_of(step) >= pitch) break;
#pragma unroll
      for (A& value : values_[step]) value *= scale;
      store_values(out + first_of(step), kCount, true, values_[step]);
    }
  }

 private:
  static constexpr int kSteps = kHeldEnergies / kCount;

  __device__ static int first_of(int step) { return (step * kWarpSize + lane_index()) * kCount; }

  A values_[kSteps][kCount];
};

// Losses of a chunk of edges and, where `gradient` is given, dL/denergies, zeros past K * K. One
// warp an edge, each lane kCount energies at a time: as many begin at a multiple of their size.
template <bool kHeld, int kCount, class T>
__global__ void losses_kernel(GraphView graph, EdgeLabels labels, EdgeChunk chunk, int num_labels,
                              int pitch,                          // of rows of energies, >= K * K
                              const T* energies,                  // [C, pitch]
                              const Accumulator<T>* edge_weight,  // [E], or null: all ones
                              Accumulator<T>* losses,             // [E]
                              T* gradient) {  // [C, pitch], or null; may be the energies
  wait_for_former_kernels();
  using A = Accumulator<T>;
  using Row = std::conditional_t<kHeld, HeldRow<kCount, T>, LongRow<kCount, T>>;
  const int pairs = num_labels * num_labels;
  for (int64_t i = first_warp(); i < chunk.count; i += num_warps()) {
    const int64_t e = chunk.first + i;
    const int64_t first = labels.labels[graph.sources[e]];
    const int64_t second = labels.labels[graph.targets[e]];
    T* out = gradient == nullptr ? nullptr : gradient + i * pitch;
    if (first == labels.ignore_index || second == labels.ignore_index) {
      if (lane_index() == 0) losses[e] = 0;
      const A zeros[kCount] = {};
      for (int pair = lane_index() * kCount; out != nullptr && pair < pitch;
           pair += kWarpSize * kCount) {
        store_values(out + pair, kCount, true, zeros);
      }
      continue;
    }
    const T* energies_of_edge = energies + i * pitch;
    const int truth = static_cast<int>(first) * num_labels + static_cast<int>(second);
    const A truth_energy = energies_of_edge[truth];
    Row row(energies_of_edge, pairs);
    const Partition<A> partition = row.partition();
    if (lane_index() == 0) losses[e] = partition.negative_log(truth_energy);
    if (out == nullptr) continue;
    const A weight = edge_weight == nullptr ? A(1) : edge_weight[e];
    __syncwarp();  // every lane has read the energy of the truth
    row.store_scaled(partition, -weight, pitch, out);
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
  const auto call = [&](auto kernel) {
    launch_early("losses", kernel, grid_size(chunk.count, kWarpsPerBlock), kThreadsPerBlock, 0,
                 ctx.stream, graph, labels, chunk, static_cast<int>(num_labels),
                 static_cast<int>(pitch), rows, static_cast<const Accumulator<T>*>(edge_weight),
                 static_cast<Accumulator<T>*>(losses), out);
  };
  if (num_labels * num_labels <= kHeldEnergies * kWarpSize) {
    call(vectorised ? losses_kernel<true, V, T> : losses_kernel<true, 1, T>);
  } else {
    call(vectorised ? losses_kernel<false, V, T> : losses_kernel<false, 1, T>);
  }
}

}  // namespace deepcrf::cuda
