// What the two passes of the fused pairwise loss share: square tiles of edges
// by label pairs, whose energies are products of rows of features in shared
// memory.
#pragma once

#include <cstddef>

#include "core/graph_view.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"
#include "ops/factored_potential.h"
#include "ops/pairwise_nll_chunk.h"

namespace deepcrf::cuda {

constexpr int kLossWarps = 8;
constexpr int kLossThreads = kLossWarps * kWarpSize;
constexpr int kFeatureTiles = 8;  // of 8 features, a warp: its share of the sums of a tile's rows
constexpr int64_t kMostFusedFeatures = kFeatureTiles * 8 * kLossWarps;

// Edges and label pairs of a tile.
template <class T>
constexpr int kTileSize = 32;
template <>
constexpr int kTileSize<bfloat16> = 64;
template <>
constexpr int kTileSize<double> = 16;

// Warps share out the energies of a tile: kRowWarps x kColumnWarps of 16 x (8 *
// kEnergyTiles) each.
template <class T>
constexpr int kRowWarps = kTileSize<T> / 16;
template <class T>
constexpr int kColumnWarps =
    kLossWarps / kRowWarps<T> < kTileSize<T> / 8 ? kLossWarps / kRowWarps<T> : kTileSize<T> / 8;
template <class T>
constexpr int kEnergyTiles = kTileSize<T> / 8 / kColumnWarps<T>;

template <class T>
struct LossProblem {
  GraphView graph;
  FactoredPotential<T> potential;
  EdgeLabels labels;
  const T* edge_weight;  // [E], or null: all ones
  bool vectorised;       // rows of features may be read 16 bytes at a time

  __device__ int64_t num_pairs() const { return potential.num_labels * potential.num_labels; }
};

// D rounded up to whole fragments, and rows of it in shared memory.
inline __host__ __device__ int padded_features(int64_t num_features) {
  return static_cast<int>(round_up<int64_t>(num_features, 16));
}
template <class T>
__host__ __device__ int feature_pitch(int64_t num_features) {
  return padded_features(num_features) + kRowPadding<T>;
}

// Of the softmax of every edge.
template <class A>
struct EdgeSoftmax {
  A* lowest;   // [E], the lowest energy
  A* inverse;  // [E], 1 / sum exp(lowest - energy)
};

// What a tile knows of its edges, in shared memory.
template <class T>
struct TileEdges {
  int64_t source[kTileSize<T>];
  int64_t target[kTileSize<T>];
  int truth[kTileSize<T>];              // label pair, or -1 where there is no edge or an end
                                        // is ignored
  Accumulator<T> weight[kTileSize<T>];  // 0 where truth is -1

  // Edges first..end-1, as far as the tile goes. Followed by a barrier.
  __device__ void load(const LossProblem<T>& problem, int64_t first, int64_t end) {
    if (threadIdx.x >= kTileSize<T>) return;
    const int i = threadIdx.x;
    const int64_t e = first + i;
    source[i] = target[i] = 0;
    truth[i] = -1;
    weight[i] = 0;
    if (e >= end) return;
    source[i] = row_of(problem.graph.row_offsets, problem.graph.num_nodes, e);
    target[i] = problem.graph.targets[e];
    const int64_t k = problem.labels.labels[source[i]];
    const int64_t j = problem.labels.labels[target[i]];
    if (k == problem.labels.ignore_index || j == problem.labels.ignore_index) return;
    truth[i] = static_cast<int>(k * problem.potential.num_labels + j);
    weight[i] =
        problem.edge_weight == nullptr ? Accumulator<T>(1) : Accumulator<T>(problem.edge_weight[e]);
  }
};

// hidden = relu(source + target) of a tile's edges, zero where there is none.
// The block's threads share the work; followed by a barrier.
template <class T>
__device__ void load_hidden(const LossProblem<T>& problem, const TileEdges<T>& edges,
                            T* hidden) {  // [tile, pitch]
  constexpr int V = kVector<T>;
  const int64_t D = problem.potential.num_features;
  const int groups = padded_features(D) / V;
  const int pitch = feature_pitch<T>(D);
  for (int i = threadIdx.x; i < kTileSize<T> * groups; i += kLossThreads) {
    const int row = i / groups;
    const int64_t d = i % groups * V;
    Accumulator<T> first[V] = {};
    Accumulator<T> second[V] = {};
    if (edges.truth[row] >= 0) {
      const bool whole = problem.vectorised && d < D;
      load_values(problem.potential.source + edges.source[row] * D + d, D - d, whole, first);
      load_values(problem.potential.target + edges.target[row] * D + d, D - d, whole, second);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) first[v] = relu(first[v] + second[v]);
    store_values(hidden + row * pitch + d, V, true, first);
  }
}

// Starts copying the weight rows of a tile of label pairs, zeros past the ends,
// as one group of asynchronous copies.
template <class T>
__device__ void load_weight(const LossProblem<T>& problem, int64_t first_pair,
                            T* weight) {  // [tile, pitch]
  constexpr int V = 16 / sizeof(T);
  const int64_t D = problem.potential.num_features;
  const int groups = padded_features(D) / V;
  const int pitch = feature_pitch<T>(D);
  for (int i = threadIdx.x; i < kTileSize<T> * groups; i += kLossThreads) {
    const int row = i / groups;
    const int64_t d = i % groups * V;
    const int64_t valid = first_pair + row < problem.num_pairs() ? D - d : 0;
    const T* from = problem.potential.weight + (first_pair + row) * D + d;
    T* to = weight + row * pitch + d;
    if (problem.vectorised) {
      cp_async_16(to, valid > 0 ? from : problem.potential.weight, valid > 0);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) to[v] = v < valid ? from[v] : T(Accumulator<T>(0));
    }
  }
  cp_async_commit();
}

// The energies, less the bias, of this warp's part of a tile: products of its
// rows with its columns.
template <class T>
struct WarpEnergies {
  Accumulator<T> sums[kEnergyTiles<T>][4];
  int first_row;
  int first_column;
  bool active;  // whether the warp has a part

  __device__ WarpEnergies() {
    const int warp = threadIdx.x / kWarpSize;
    first_row = warp % kRowWarps<T> * 16;
    first_column = warp / kRowWarps<T> * 8 * kEnergyTiles<T>;
    active = warp < kRowWarps<T> * kColumnWarps<T>;
  }
  __device__ int row(int part) const { return first_row + fragment_row(part); }
  __device__ int column(int tile, int part) const {
    return first_column + tile * 8 + fragment_column(part);
  }

  __device__ void multiply(const T* rows, const T* columns, int64_t num_features) {
#pragma unroll
    for (int i = 0; i < kEnergyTiles<T>; ++i) {
#pragma unroll
      for (int part = 0; part < 4; ++part) sums[i][part] = 0;
    }
    const int pitch = feature_pitch<T>(num_features);
    multiply_transposed(rows + first_row * pitch, columns + first_column * pitch, pitch,
                        padded_features(num_features), sums);
  }
};

// Sums over the columns of a tile, [tile, D] in the registers of a block: every
// warp holds all rows of the feature tiles warp, warp + kLossWarps, ...
template <class T>
struct FeatureSums {
  static constexpr int kGradientPitch = kTileSize<T> + kRowPadding<T>;
  Accumulator<T> sums[kTileSize<T> / 16][kFeatureTiles][4];

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kTileSize<T> / 16; ++m) {
#pragma unroll
      for (int n = 0; n < kFeatureTiles; ++n) {
#pragma unroll
        for (int part = 0; part < 4; ++part) sums[m][n][part] = 0;
      }
    }
  }

  static __device__ int first_feature(int n) {
    return (threadIdx.x / kWarpSize + n * kLossWarps) * 8;
  }

  // sums += gradient . features
  __device__ void add(const T* gradient,  // [tile rows, kGradientPitch]
                      const T* features,  // [tile columns, pitch]
                      int64_t num_features) {
    const int padded = padded_features(num_features);
    const int pitch = feature_pitch<T>(num_features);
    for (int k = 0; k < kTileSize<T>; k += kFragmentDepth<T>) {
      FragmentA<T> rows[kTileSize<T> / 16];
#pragma unroll
      for (int m = 0; m < kTileSize<T> / 16; ++m) {
        rows[m].load(gradient + m * 16 * kGradientPitch + k, kGradientPitch);
      }
#pragma unroll
      for (int n = 0; n < kFeatureTiles; ++n) {
        if (first_feature(n) >= padded) break;
        FragmentB<T> columns;
        columns.load(features + k * pitch + first_feature(n), pitch);
#pragma unroll
        for (int m = 0; m < kTileSize<T> / 16; ++m) multiply(rows[m], columns, sums[m][n]);
      }
    }
  }

  // Calls function(row, feature, sum) for every element of this thread.
  template <class Function>
  __device__ void for_each(int64_t num_features, Function&& function) const {
#pragma unroll
    for (int m = 0; m < kTileSize<T> / 16; ++m) {
#pragma unroll
      for (int n = 0; n < kFeatureTiles; ++n) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const int feature = first_feature(n) + fragment_column(part);
          if (feature < num_features) {
            function(m * 16 + fragment_row(part), feature, sums[m][n][part]);
          }
        }
      }
    }
  }
};

// Shared memory of a tile with its matrices of features.
template <class Tile, class T>
size_t tile_bytes(int64_t num_features, int matrices) {
  return offsetof(Tile, rows) +
         static_cast<size_t>(matrices) * kTileSize<T> * feature_pitch<T>(num_features) * sizeof(T);
}

}  // namespace deepcrf::cuda
