// What the neighbours of a node add up to, by one warp on CUDA cores:
//   A[j, :] = sum over neighbours q of  coefficient_q[j] * relu(self + other_q)
// in registers, each lane with its own features.
#pragma once

#include "cuda/edge_stages.cuh"

namespace deepcrf::cuda {

// sums = A of `node` for a block of labels. Returns the sum of the neighbours' coefficients of
// label lane_index(), of lanes that have one.
template <int kLabels, class T, bool kVectorised>
__device__ Accumulator<T> aggregate(const Direction<T>& direction, int64_t node,
                                    const LaneFeatures<T, kVectorised>& features,
                                    const Accumulator<T>* coefficients,  // [N, columns], a block's
                                    int columns, void* shared,           // [kStageBytes]
                                    Accumulator<T> (&sums)[kLabels][kVector<T>]) {
  using A = Accumulator<T>;
  A self[kVector<T>];
  features.load(direction.self + node * direction.num_features, self);
#pragma unroll
  for (int j = 0; j < kLabels; ++j) {
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) sums[j][v] = 0;
  }
  A coefficient_sum = 0;
  const int label = lane_index() < kLabels ? lane_index() : 0;
  const auto add = [&](const A(&other)[kVector<T>], const A* of_neighbour) {
    A hidden[kVector<T>];
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) hidden[v] = relu(self[v] + other[v]);
#pragma unroll
    for (int j = 0; j < kLabels; j += kVector<A>) {
      A coefficient[kVector<A>];
      load_values(of_neighbour + j, kVector<A>, true, coefficient);
#pragma unroll
      for (int i = 0; i < kVector<A>; ++i) {
#pragma unroll
        for (int v = 0; v < kVector<T>; ++v) sums[j + i][v] += coefficient[i] * hidden[v];
      }
    }
    coefficient_sum += of_neighbour[label];
  };
  for_each_edge<kLabels>(direction, node, features, coefficients, columns, shared, add);
  return coefficient_sum;
}

}  // namespace deepcrf::cuda
