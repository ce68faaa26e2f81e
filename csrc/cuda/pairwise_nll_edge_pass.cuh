// First pass of the fused pairwise loss: a block keeps the hidden vectors of a tile of edges and
// streams the weight past them, once for the log-sum-exp and, for gradients, once more for
// G = dL/denergies and dL/dhidden = G . weight.
#pragma once

#include "cuda/pairwise_nll_tile.cuh"

namespace deepcrf::cuda {

template <class T>
struct EdgeTile {
  TileEdges<T> edges;
  Accumulator<T> lowest[kTileSize<T>][kColumnWarps<T>];
  Accumulator<T> sum[kTileSize<T>][kColumnWarps<T>];
  Accumulator<T> truth_energy[kTileSize<T>];
  alignas(16) T gradient[kTileSize<T> * FeatureSums<T>::kGradientPitch];
  alignas(16) T rows[1];  // [1 + buffers][tile, pitch]: hidden vectors, then the weight
};

// A row of exp(-energies) summed up a few at a time.
template <class A>
struct RunningSoftmax {
  A lowest = INFINITY;
  A sum = 0;  // of exp(lowest - energy)

  // Infinite energies add nothing.
  template <int kCount>
  __device__ void add(const A (&energies)[kCount]) {
    A next = lowest;
#pragma unroll
    for (int i = 0; i < kCount; ++i) next = energies[i] < next ? energies[i] : next;
    if (next == A(INFINITY)) return;
    sum *= exponential(next - lowest);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += exponential(next - energies[i]);
    lowest = next;
  }

  __device__ void merge(A other_lowest, A other_sum) {
    const A next = other_lowest < lowest ? other_lowest : lowest;
    if (next == A(INFINITY)) return;
    sum = sum * exponential(next - lowest) + other_sum * exponential(next - other_lowest);
    lowest = next;
  }
};

// Streams the weight past the tile's hidden vectors: calls function(first_pair, weight) for every
// tile of label pairs, with `buffers` - 1 tiles under way ahead. Ends with a barrier.
template <class T, class Function>
__device__ void for_each_weight_tile(const LossProblem<T>& problem, T* weight, int buffers,
                                     Function&& function) {
  const int64_t size = kTileSize<T> * feature_pitch<T>(problem.potential.num_features);
  const int tiles = static_cast<int>(ceil_div<int64_t>(problem.num_pairs(), kTileSize<T>));
  if (buffers == 2) load_weight(problem, 0, weight);
  for (int tile = 0; tile < tiles; ++tile) {
    T* current = weight + tile % buffers * size;
    const int next = tile + buffers - 1;
    if (next < tiles) {
      load_weight(problem, static_cast<int64_t>(next) * kTileSize<T>,
                  weight + next % buffers * size);
    }
    if (buffers == 2 && next < tiles) {
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    function(static_cast<int64_t>(tile) * kTileSize<T>, current);
    __syncthreads();
  }
}

// Losses of the edges of a chunk and, kGradient, dL/dhidden masked by hidden > 0.
template <class T, bool kGradient>
__global__ void __launch_bounds__(kLossThreads)
    edge_pass_kernel(LossProblem<T> problem, EdgeChunk chunk, int buffers,
                     T* losses,                            // [E]
                     EdgeSoftmax<Accumulator<T>> softmax,  // null pointers without kGradient
                     T* grad_hidden) {                     // [C, D], or null without kGradient
  using A = Accumulator<T>;
  EdgeTile<T>& tile = *dynamic_shared<EdgeTile<T>>();
  const int64_t D = problem.potential.num_features;
  const int64_t pairs = problem.num_pairs();
  T* hidden = tile.rows;
  T* weight = hidden + kTileSize<T> * feature_pitch<T>(D);
  WarpEnergies<T> energies;

  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * kTileSize<T>; begin < chunk.count;
       begin += static_cast<int64_t>(gridDim.x) * kTileSize<T>) {
    const int64_t first_edge = chunk.first + begin;
    tile.edges.load(problem, first_edge, chunk.first + chunk.count);
    __syncthreads();
    load_hidden(problem, tile.edges, hidden);

    RunningSoftmax<A> own[2];  // of rows g and g + 8
    for_each_weight_tile(problem, weight, buffers, [&](int64_t first_pair, const T* columns) {
      if (!energies.active) return;
      energies.multiply(hidden, columns, D);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = energies.row(2 * half);
        A values[2 * kEnergyTiles<T>];
#pragma unroll
        for (int i = 0; i < 2 * kEnergyTiles<T>; ++i) {
          const int part = 2 * half + i % 2;
          const int64_t pair = first_pair + energies.column(i / 2, part);
          values[i] = pair < pairs ? energies.sums[i / 2][part] + A(problem.potential.bias[pair])
                                   : A(INFINITY);
          if (pair == tile.edges.truth[row]) tile.truth_energy[row] = values[i];
        }
        own[half].add(values);
      }
    });
    if (energies.active) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2) {
          const A lowest = __shfl_xor_sync(kAllLanes, own[half].lowest, offset);
          const A sum = __shfl_xor_sync(kAllLanes, own[half].sum, offset);
          own[half].merge(lowest, sum);
        }
        if (lane_index() % 4 == 0) {
          const int warp = energies.first_column / (8 * kEnergyTiles<T>);
          tile.lowest[energies.row(2 * half)][warp] = own[half].lowest;
          tile.sum[energies.row(2 * half)][warp] = own[half].sum;
        }
      }
    }
    __syncthreads();
    if (threadIdx.x < kTileSize<T>) {
      const int row = threadIdx.x;
      RunningSoftmax<A> whole;
      for (int warp = 0; warp < kColumnWarps<T>; ++warp) {
        whole.merge(tile.lowest[row][warp], tile.sum[row][warp]);
      }
      const bool valid = tile.edges.truth[row] >= 0;
      tile.lowest[row][0] = whole.lowest;
      tile.sum[row][0] = A(1) / whole.sum;
      if (begin + row < chunk.count) {
        losses[first_edge + row] =
            T(valid ? tile.truth_energy[row] - whole.lowest + logarithm(whole.sum) : A(0));
        if (kGradient) {
          softmax.lowest[first_edge + row] = whole.lowest;
          softmax.inverse[first_edge + row] = A(1) / whole.sum;
        }
      }
    }
    __syncthreads();
    if constexpr (kGradient) {
      FeatureSums<T> sums;
      sums.clear();
      for_each_weight_tile(problem, weight, buffers, [&](int64_t first_pair, const T* columns) {
        if (energies.active) {
          energies.multiply(hidden, columns, D);
#pragma unroll
          for (int i = 0; i < kEnergyTiles<T>; ++i) {
#pragma unroll
            for (int part = 0; part < 4; ++part) {
              const int row = energies.row(part);
              const int64_t pair = first_pair + energies.column(i, part);
              A gradient = 0;
              if (pair < pairs) {
                const A energy = energies.sums[i][part] + A(problem.potential.bias[pair]);
                const A probability = exponential(tile.lowest[row][0] - energy) * tile.sum[row][0];
                const A truth = pair == tile.edges.truth[row] ? A(1) : A(0);
                gradient = tile.edges.weight[row] * (truth - probability);
              }
              tile.gradient[row * FeatureSums<T>::kGradientPitch + energies.column(i, part)] =
                  T(gradient);
            }
          }
        }
        __syncthreads();
        sums.add(tile.gradient, columns, D);
      });
      sums.for_each(D, [&](int row, int feature, A sum) {
        if (begin + row >= chunk.count) return;
        const bool positive = A(hidden[row * feature_pitch<T>(D) + feature]) > 0;
        grad_hidden[(begin + row) * D + feature] = T(positive ? sum : A(0));
      });
      __syncthreads();
    }
  }
}

}  // namespace deepcrf::cuda
