// The directions that messages go in, and how the features of each are split over blocks.
#pragma once

#include <algorithm>

#include "core/graph_view.h"
#include "cuda/arithmetic.cuh"
#include "cuda/tf32.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warps.cuh"
#include "ops/factored_potential.h"

namespace deepcrf::cuda {

// As dispatch_floating, with tf32x3 or tf32 for float32 whose products need not be of float32.
template <class Function>
void dispatch_products(DType dtype, MatmulPrecision precision, const char* name,
                       Function&& function) {
  if (dtype == DType::float32 && precision == MatmulPrecision::high) return function(tf32x3{});
  if (dtype == DType::float32 && precision == MatmulPrecision::medium) return function(tf32{});
  dispatch_floating(dtype, name, function);
}

// One direction of one potential, as the receiving nodes see it. Along the edges a node p receives
// from its targets; against them a node q receives from its sources, with the roles of the two
// projections and of the two label axes exchanged.
template <class T>
struct Direction {
  const int64_t* row_offsets;  // [N + 1]
  const int32_t* neighbours;   // [E]
  const T* self;               // [N, D]
  const T* other;              // [N, D]
  const T* weight;             // [K, K, D]
  const T* bias;               // [K, K], both at receiver * label_row + neighbour * label_step
  int label_row;
  int label_step;
  int64_t num_features;  // D
  bool vectorised;       // rows of D may be read by vectors

  __device__ int64_t pair(int k, int j) const {
    return static_cast<int64_t>(k) * label_row + static_cast<int64_t>(j) * label_step;
  }
};

// What one block of a message kernel works on: four nodes on CUDA cores, a warp each, or 16 nodes
// on the tensor cores.
template <class T, bool = kOnTensorCores<T>>
struct MessageBlock {
  static constexpr int kNodes = kWarpsPerBlock;
  static constexpr int kVector = deepcrf::cuda::kVector<T>;  // elements that are read at once
  static constexpr int kFeatures = kVector * kWarpSize;
};
template <class T>
struct MessageBlock<T, true> {
  static constexpr int kNodes = 16;
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kFeatures = 8 * kVector;  // 8 groups of lanes
};

template <class T>
bool rows_are_vectors(const FactoredPotential<T>& potential, int count) {
  return potential.num_features % count == 0 && is_aligned(potential.source, count) &&
         is_aligned(potential.target, count) && is_aligned(potential.weight, count);
}

// `vector` elements are read from a row at once, where rows allow it.
template <class T>
Direction<T> along(const GraphView& graph, const FactoredPotential<T>& potential, int vector) {
  return {graph.row_offsets,
          graph.targets,
          potential.source,
          potential.target,
          potential.weight,
          potential.bias,
          static_cast<int>(potential.num_labels),
          1,
          potential.num_features,
          rows_are_vectors(potential, vector)};
}

template <class T>
Direction<T> against(const GraphView& graph, const FactoredPotential<T>& potential, int vector) {
  return {graph.reverse_row_offsets,
          graph.reverse_sources,
          potential.target,
          potential.source,
          potential.weight,
          potential.bias,
          1,
          static_cast<int>(potential.num_labels),
          potential.num_features,
          rows_are_vectors(potential, vector)};
}

constexpr int kMaxDirections = 8;

// The directions of one launch. Sums over the features are split (split-K): every block of features
// of a direction adds a split of the messages, [N, K].
template <class T>
struct MessageSplits {
  using Block = MessageBlock<T>;

  Direction<T> directions[kMaxDirections];
  int first_split[kMaxDirections + 1];
  int num_directions;

  __host__ __device__ int count() const { return first_split[num_directions]; }
  __host__ __device__ int64_t num_blocks(int64_t num_nodes) const {
    return count() * ceil_div<int64_t>(num_nodes, Block::kNodes);
  }

  __device__ int direction_of(int split) const {
    int index = 0;
    while (first_split[index + 1] <= split) ++index;
    return index;
  }

  // Whether the rows of all directions may be read by vectors.
  bool vectorised() const {
    return std::all_of(directions, directions + num_directions,
                       [](const Direction<T>& direction) { return direction.vectorised; });
  }

  void add_both(const GraphView& graph, const FactoredPotential<T>& potential) {
    add(along(graph, potential, Block::kVector));
    add(against(graph, potential, Block::kVector));
  }

 private:
  void add(const Direction<T>& direction) {
    const int64_t splits = ceil_div<int64_t>(direction.num_features, Block::kFeatures);
    directions[num_directions] = direction;
    first_split[num_directions + 1] = first_split[num_directions] + static_cast<int>(splits);
    ++num_directions;
  }
};

}  // namespace deepcrf::cuda
