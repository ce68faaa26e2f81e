// Second pass of the fused pairwise loss: a block keeps the weight of a tile of label pairs and
// streams edges past it for dL/dweight = G' . hidden, with the softmax of the first pass. What the
// splits of the edges add goes to a workspace, to be summed in a fixed order.
#pragma once

#include "cuda/pairwise_nll_tile.cuh"

namespace deepcrf::cuda {

template <class T>
struct PairTile {
  TileEdges<T> edges;
  Accumulator<T> lowest[kTileSize<T>];
  Accumulator<T> inverse[kTileSize<T>];
  Accumulator<T> bias_sum[kTileSize<T>][kColumnWarps<T>];
  alignas(16) T gradient[kTileSize<T> * FeatureSums<T>::kGradientPitch];
  alignas(16) T rows[1];  // [2][tile, pitch]: the weight, then hidden vectors
};

// dL/dweight and dL/dbias, split by edges. A block's work is a tile of label pairs and a split.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    weight_pass_kernel(LossProblem<T> problem, EdgeSoftmax<Accumulator<T>> softmax, int splits,
                       Accumulator<T>* weight_parts,  // [splits, K * K, D]
                       Accumulator<T>* bias_parts) {  // [splits, K * K]
  using A = Accumulator<T>;
  PairTile<T>& tile = *dynamic_shared<PairTile<T>>();
  const int64_t D = problem.potential.num_features;
  const int64_t pairs = problem.num_pairs();
  const int64_t num_edges = problem.graph.num_edges;
  const int64_t edge_tiles = ceil_div<int64_t>(num_edges, kTileSize<T>);
  T* weight = tile.rows;
  T* hidden = weight + kTileSize<T> * feature_pitch<T>(D);
  WarpEnergies<T> energies;

  for (int64_t task = blockIdx.x; task < ceil_div<int64_t>(pairs, kTileSize<T>) * splits;
       task += gridDim.x) {
    const int64_t first_pair = task / splits * kTileSize<T>;
    const int64_t split = task % splits;
    load_weight(problem, first_pair, weight);
    cp_async_wait<0>();
    A bias_sums[2] = {};  // of rows g and g + 8
    FeatureSums<T> sums;
    sums.clear();
    for (int64_t edge_tile = edge_tiles * split / splits;
         edge_tile < edge_tiles * (split + 1) / splits; ++edge_tile) {
      const int64_t first_edge = edge_tile * kTileSize<T>;
      tile.edges.load(problem, first_edge, num_edges);
      if (threadIdx.x < kTileSize<T>) {
        const int64_t e = first_edge + threadIdx.x;
        tile.lowest[threadIdx.x] = e < num_edges ? softmax.lowest[e] : A(0);
        tile.inverse[threadIdx.x] = e < num_edges ? softmax.inverse[e] : A(0);
      }
      __syncthreads();
      load_hidden(problem, tile.edges, hidden);
      __syncthreads();
      if (energies.active) {
        energies.multiply(weight, hidden, D);
#pragma unroll
        for (int i = 0; i < kEnergyTiles<T>; ++i) {
#pragma unroll
          for (int part = 0; part < 4; ++part) {
            const int64_t pair = first_pair + energies.row(part);
            const int column = energies.column(i, part);
            A gradient = 0;
            if (pair < pairs && tile.edges.truth[column] >= 0) {
              const A energy = energies.sums[i][part] + A(problem.potential.bias[pair]);
              const A probability =
                  exponential(tile.lowest[column] - energy) * tile.inverse[column];
              const A truth = pair == tile.edges.truth[column] ? A(1) : A(0);
              gradient = tile.edges.weight[column] * (truth - probability);
            }
            bias_sums[part / 2] += gradient;
            tile.gradient[energies.row(part) * FeatureSums<T>::kGradientPitch + column] =
                T(gradient);
          }
        }
      }
      __syncthreads();
      sums.add(tile.gradient, hidden, D);
      __syncthreads();
    }
    sums.for_each(D, [&](int row, int feature, A sum) {
      if (first_pair + row >= pairs) return;
      weight_parts[(split * pairs + first_pair + row) * D + feature] = sum;
    });
    if (energies.active) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2) {
          bias_sums[half] += __shfl_xor_sync(kAllLanes, bias_sums[half], offset);
        }
        if (lane_index() % 4 == 0) {
          const int warp = energies.first_column / (8 * kEnergyTiles<T>);
          tile.bias_sum[energies.row(2 * half)][warp] = bias_sums[half];
        }
      }
    }
    __syncthreads();
    if (threadIdx.x < kTileSize<T> && first_pair + threadIdx.x < pairs) {
      A sum = 0;
      for (int warp = 0; warp < kColumnWarps<T>; ++warp) sum += tile.bias_sum[threadIdx.x][warp];
      bias_parts[split * pairs + first_pair + threadIdx.x] = sum;
    }
    __syncthreads();
  }
}

}  // namespace deepcrf::cuda
