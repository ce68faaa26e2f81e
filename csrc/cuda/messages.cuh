// Factored messages on CUDA cores (design: "mean field without the K x K tables"), shared by
// pairwise_messages and mean_field.
//
// One warp receives for one node over one slice of the features and one block of labels at a time:
//   A_p[j, :] = sum over neighbours q of  Q_q[j] * relu(self_p + other_q)
// in registers, each lane with its own features, contracted at once with its slice of the weight.
// What the slices add to a message goes to a workspace and is summed in a fixed order.
#pragma once

#include <algorithm>
#include <climits>
#include <type_traits>

#include "core/graph_view.h"
#include "cuda/launch.cuh"
#include "cuda/numeric.cuh"
#include "ops/factored_potential.h"

namespace deepcrf::cuda {

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

// Features of one warp's slice on CUDA cores.
template <class T>
constexpr int kSlice = kVector<T> * kWarpSize;

// Features of one part of the messages.
template <class T>
constexpr int kMessageSlice = kIsHalf<T> ? 64 : kSlice<T>;

// Elements that the messages read from a row at once, where rows allow it.
template <class T>
constexpr int kMessageVector = kIsHalf<T> ? 8 : kVector<T>;

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

// Labels are cut into near-equal blocks of at most kMostLabels accumulators a feature, a multiple
// of kLabelStep. Rows of coefficients are padded with zeros to whole blocks.
constexpr int kLabelStep = 8;
template <class T>
constexpr int kMostLabels = 24;
template <>
constexpr int kMostLabels<double> = kLabelStep;

template <class T>
int block_labels(int64_t num_labels) {
  const int64_t blocks = ceil_div<int64_t>(num_labels, kMostLabels<T>);
  return static_cast<int>(round_up<int64_t>(ceil_div(num_labels, blocks), kLabelStep));
}
template <class T>
int padded_labels(int64_t num_labels) {
  return static_cast<int>(round_up<int64_t>(num_labels, block_labels<T>(num_labels)));
}

// Calls function(std::integral_constant<int, labels>, std::bool_constant<vectorised>) for labels =
// block_labels(num_labels). Loads of which the compiler knows whether they are by vectors stand in
// one basic block, and so are under way together.
template <class T, class Function>
void dispatch_kernel(int64_t num_labels, bool vectorised, Function&& function) {
  const auto call = [&](auto labels) {
    if (vectorised) return function(labels, std::true_type{});
    return function(labels, std::false_type{});
  };
  switch (block_labels<T>(num_labels)) {
    case 8: return call(std::integral_constant<int, 8>{});
    case 16:
      if constexpr (kMostLabels<T> >= 16) return call(std::integral_constant<int, 16>{});
      break;
    case 24:
      if constexpr (kMostLabels<T> >= 24) return call(std::integral_constant<int, 24>{});
      break;
  }
  throw Error("no kernel for this number of labels");
}

// Where the coefficients of a node stand, widened and padded with zeros to whole blocks of labels.
template <class T, bool = kIsHalf<T>>
struct CoefficientLayout {
  using Element = Accumulator<T>;
  int columns;  // of a node

  explicit CoefficientLayout(int64_t num_labels) : columns(padded_labels<T>(num_labels)) {}

  __device__ int slot(int label) const { return label; }
  __device__ int label(int slot) const { return slot; }  // may be past the last
};

// For the tensor cores: lane g * 4 + t reads labels g, 8 + g and 16 + g of a block together.
template <class T>
struct CoefficientLayout<T, true> {
  using Element = T;
  int labels;   // of a block
  int columns;  // 32 a block

  explicit CoefficientLayout(int64_t num_labels)
      : labels(block_labels<T>(num_labels)),
        columns(static_cast<int>(ceil_div<int64_t>(num_labels, labels)) * 32) {}

  __device__ int slot(int label) const {
    const int within = label % labels;
    return label / labels * 32 + within % 8 * 4 + within / 8;
  }
  __device__ int label(int slot) const {
    const int tile = slot % 4;
    return tile * 8 < labels ? slot / 32 * labels + tile * 8 + slot % 32 / 4 : INT_MAX;
  }
};

// The feature-wise view of one lane: kVector features from `feature` on.
template <class T, bool kVectorised>
struct LaneFeatures {
  int64_t feature;
  int64_t valid;  // features left in the row, not positive past its end

  __device__ LaneFeatures(const Direction<T>& direction, int64_t slice)
      : feature(slice * kSlice<T> + lane_index() * kVector<T>),
        valid(direction.num_features - feature) {}

  __device__ void load(const T* row, Accumulator<T> (&values)[kVector<T>]) const {
    if constexpr (kVectorised) {
      Packed<T, kVector<T>> packed = {};
      if (valid > 0) packed = *reinterpret_cast<const Packed<T, kVector<T>>*>(row + feature);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) values[i] = packed.values[i];
    } else {
      load_values(row + feature, valid, false, values);
    }
  }
  __device__ void store(Accumulator<T>* row, const Accumulator<T> (&values)[kVector<T>]) const {
    store_values(row + feature, valid, kVectorised && valid > 0, values);
  }
};

// Edges of a node whose loads are under way together.
constexpr int kEdgeStep = 2;

// sums[j] = sum over the neighbours q of `node` of coefficients[q][j] * relu(self + other_q).
template <int kLabels, class T, bool kVectorised>
__device__ void accumulate(
    const Direction<T>& direction, int64_t node, const LaneFeatures<T, kVectorised>& features,
    const Accumulator<T>* coefficients,  // [N, columns], a block's first label on
    int columns, Accumulator<T> (&sums)[kLabels][kVector<T>]) {
  using A = Accumulator<T>;
  A self[kVector<T>];
  features.load(direction.self + node * direction.num_features, self);
#pragma unroll
  for (int j = 0; j < kLabels; ++j) {
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) sums[j][v] = 0;
  }
  const auto load_other = [&](int64_t neighbour, A(&other)[kVector<T>]) {
    features.load(direction.other + neighbour * direction.num_features, other);
  };
  const auto add = [&](int64_t neighbour, A(&hidden)[kVector<T>]) {
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) hidden[v] = relu(self[v] + hidden[v]);
    const A* of_neighbour = coefficients + neighbour * columns;
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
  };
  const int64_t end = direction.row_offsets[node + 1];
  int64_t e = direction.row_offsets[node];
  for (; e + kEdgeStep <= end; e += kEdgeStep) {
    int32_t neighbours[kEdgeStep];
    A others[kEdgeStep][kVector<T>];
#pragma unroll
    for (int i = 0; i < kEdgeStep; ++i) neighbours[i] = direction.neighbours[e + i];
#pragma unroll
    for (int i = 0; i < kEdgeStep; ++i) load_other(neighbours[i], others[i]);
#pragma unroll
    for (int i = 0; i < kEdgeStep; ++i) add(neighbours[i], others[i]);
  }
  for (; e < end; ++e) {
    const int64_t neighbour = direction.neighbours[e];
    A other[kVector<T>];
    load_other(neighbour, other);
    add(neighbour, other);
  }
}

// The directions of one launch. A direction contributes a part per slice of its features, and one
// for its bias.
constexpr int kMaxDirections = 8;

template <class T>
struct MessageTasks {
  Direction<T> directions[kMaxDirections];
  int first_part[kMaxDirections + 1];
  int count;

  __host__ __device__ int num_parts() const { return first_part[count]; }

  __device__ int direction_of(int part) const {
    int index = 0;
    while (first_part[index + 1] <= part) ++index;
    return index;
  }
  __device__ bool is_bias(int part, int index) const { return part + 1 == first_part[index + 1]; }

  // Whether the rows of all directions may be read by vectors.
  bool vectorised() const {
    return std::all_of(directions, directions + count,
                       [](const Direction<T>& direction) { return direction.vectorised; });
  }

  void add_both(const GraphView& graph, const FactoredPotential<T>& potential) {
    add(along(graph, potential, kMessageVector<T>));
    add(against(graph, potential, kMessageVector<T>));
  }

 private:
  void add(const Direction<T>& direction) {
    const int64_t slices = ceil_div<int64_t>(direction.num_features, kMessageSlice<T>);
    directions[count] = direction;
    first_part[count + 1] = first_part[count] + static_cast<int>(slices) + 1;
    ++count;
  }
};

// What the bias adds to the messages of a node: sum_j bias[k, j] * sum_q Q_q[j]. One warp.
template <class T>
__device__ void receive_bias(
    const Direction<T>& direction, int64_t node, int num_labels, const CoefficientLayout<T>& layout,
    const typename CoefficientLayout<T>::Element* coefficients,  // [N, columns]
    Accumulator<T>* message) {                                   // [K]
  using A = Accumulator<T>;
  for (int first = 0; first < num_labels; first += kWarpSize) {
    const int j = first + lane_index();
    A sum = 0;
    if (j < num_labels) {
      const int slot = layout.slot(j);
      const int64_t end = direction.row_offsets[node + 1];
      for (int64_t e = direction.row_offsets[node]; e < end; ++e) {
        const int64_t neighbour = direction.neighbours[e];
        sum += A(coefficients[neighbour * layout.columns + slot]);
      }
    }
    for (int k = 0; k < num_labels; ++k) {
      const A part =
          warp_sum(j < num_labels ? A(direction.bias[direction.pair(k, j)]) * sum : A(0));
      if (lane_index() == 0) message[k] = first == 0 ? part : message[k] + part;
    }
  }
}

// One warp a node and part.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    messages_kernel(MessageTasks<T> tasks, int64_t num_nodes, int num_labels,
                    CoefficientLayout<T> layout,
                    const Accumulator<T>* coefficients,  // [N, columns]
                    Accumulator<T>* parts) {             // [num_parts, N, K]
  using A = Accumulator<T>;
  const int64_t count = tasks.num_parts() * num_nodes;
  for (int64_t task = first_warp(); task < count; task += num_warps()) {
    const int part = static_cast<int>(task / num_nodes);
    const int64_t node = task % num_nodes;
    const int index = tasks.direction_of(part);
    const Direction<T>& direction = tasks.directions[index];
    A* message = parts + task * num_labels;
    if (tasks.is_bias(part, index)) {
      receive_bias(direction, node, num_labels, layout, coefficients, message);
      continue;
    }
    const LaneFeatures<T, kVectorised> features(direction, part - tasks.first_part[index]);
    for (int first = 0; first < num_labels; first += kLabels) {
      A sums[kLabels][kVector<T>];
      accumulate(direction, node, features, coefficients + first, layout.columns, sums);
      for (int k = 0; k < num_labels; ++k) {
        A product = 0;
#pragma unroll
        for (int step = 0; step < kLabels; step += kLabelStep) {
          A weights[kLabelStep][kVector<T>];
#pragma unroll
          for (int i = 0; i < kLabelStep; ++i) {
            const int j = min(first + step + i, num_labels - 1);
            features.load(direction.weight + direction.pair(k, j) * direction.num_features,
                          weights[i]);
          }
#pragma unroll
          for (int i = 0; i < kLabelStep; ++i) {
            if (first + step + i >= num_labels) break;
#pragma unroll
            for (int v = 0; v < kVector<T>; ++v) product += weights[i][v] * sums[step + i][v];
          }
        }
        product = warp_sum(product);
        if (lane_index() == 0) message[k] = first == 0 ? product : message[k] + product;
      }
    }
  }
}

template <class T, std::enable_if_t<!kIsHalf<T>, bool> = true>
void launch_messages(const MessageTasks<T>& tasks, int64_t num_nodes, int64_t num_labels,
                     const Accumulator<T>* coefficients,  // [N, columns]
                     Accumulator<T>* parts,               // [num_parts, N, K]
                     void* stream) {
  dispatch_kernel<T>(num_labels, tasks.vectorised(), [&](auto labels, auto vectorised) {
    launch("messages", messages_kernel<labels(), vectorised(), T>,
           grid_size(tasks.num_parts() * num_nodes, kWarpsPerBlock), kThreadsPerBlock, 0, stream,
           tasks, num_nodes, static_cast<int>(num_labels), CoefficientLayout<T>(num_labels),
           coefficients, parts);
  });
}

}  // namespace deepcrf::cuda
