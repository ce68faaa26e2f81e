// What the neighbours of a node add up to, by one warp on the tensor cores:
//   A[j, :] = sum over neighbours q of  coefficient_q[j] * relu(self + other_q)
// as products of features by edges with edges by labels.
#pragma once

#include "cuda/message_directions.cuh"
#include "cuda/tensor_fragments.cuh"

namespace deepcrf::cuda {

// Coefficients that a lane reads of a node at once: those of label lane / 4 of every tile of 8
// labels, then zeros.
template <int kTiles>
constexpr int kSlots = kTiles <= 4 ? 4 : 8;

// The neighbours of a node by the lanes of a warp: those of 32 edges at a time, 32 ahead.
class NeighbourLanes {
 public:
  __device__ NeighbourLanes(const int32_t* neighbours, int64_t begin, int64_t end)
      : left_(end - begin), neighbours_(neighbours + begin), ahead_(left_ > 0 ? load(0) : 0) {}
  template <class Row>
  __device__ NeighbourLanes(const Direction<Row>& direction, int64_t node)
      : NeighbourLanes(direction.neighbours, direction.row_offsets[node],
                       direction.row_offsets[node + 1]) {}

  // Starts on the next 16 edges; false: there are none.
  __device__ bool next() {
    if (left_ <= 0) return false;
    count_ = left_ < 16 ? static_cast<int>(left_) : 16;
    if (place_ == 0) {
      current_ = ahead_;
      ahead_ = load(kWarpSize);
    }
    left_ -= 16;
    neighbours_ += 16;
    place_ ^= 16;
    return true;
  }
  // How many of the 16 there are.
  __device__ int count() const { return count_; }
  // That of edge i < 16; past the last edge, of any edge of the node.
  __device__ int32_t at(int i) const { return __shfl_sync(kAllLanes, current_, (place_ ^ 16) + i); }

 private:
  __device__ int32_t load(int ahead) const {
    const int edge = ahead + lane_index();
    return neighbours_[edge < left_ ? edge : 0];
  }

  int64_t left_;
  const int32_t* neighbours_;
  int32_t ahead_;
  int32_t current_ = 0;
  int place_ = 0;  // of the next edges among the 32
  int count_ = 0;
};

// sums = A of `node` for kTiles tiles of 8 labels, as for_each_label takes it; anything past the
// end of the rows. Calls also(coefficients) with those of 4 edges of this lane, zeros past the
// last.
template <class F, bool kVectorised, int kTiles, class Row, class Also>
__device__ void aggregate_on_tensor_cores(const Direction<Row>& direction, int64_t node,
                                          NeighbourLanes neighbours,  // of the node
                                          int64_t feature,            // the first of this lane
                                          const typename F::Element* coefficients,  // [N, columns]
                                          int columns, float (&sums)[F::kProducts][kTiles][4],
                                          const Also& also) {
  using Coefficients = typename F::template Coefficients<kSlots<kTiles>>;
  const int64_t valid_features = direction.num_features - feature;
  const int64_t first_read = valid_features > 0 ? feature : 0;
  const ByteRows<Row> rows(direction.other + first_read, direction.num_features);
  const ByteRows<typename F::Element> coefficient_rows(
      coefficients + lane_index() / 4 * kSlots<kTiles>, columns);
  const auto self = F::template load<kVectorised>(
      direction.self + node * direction.num_features + first_read, valid_features);
#pragma unroll
  for (int p = 0; p < F::kProducts; ++p) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[p][tile][i] = 0;
    }
  }
  while (neighbours.next()) {
    typename F::Features hidden[4];
    Coefficients of_edge[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t neighbour = neighbours.at(F::edge(i));
      hidden[i] = F::template load<kVectorised>(rows[neighbour], valid_features);
      of_edge[i] = *reinterpret_cast<const Coefficients*>(coefficient_rows[neighbour]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (F::edge(i) >= neighbours.count()) of_edge[i] = {};
      hidden[i] = F::hidden(self, hidden[i]);
    }
    also(of_edge);
    F::add(sums, hidden, of_edge);
  }
}

// Calls store(tile, label of 8, sum) for the sums of the neighbours' coefficients of kTiles tiles
// of 8 labels, each in one lane.
template <int kTiles, class Row, class Element, class Store>
__device__ void sum_coefficients(const Direction<Row>& direction, int64_t node,
                                 const Element* coefficients,  // [N, columns]
                                 int columns, const Store& store) {
  constexpr int kLaneSlots = kSlots<kTiles> / 4;
  using Coefficients = Packed<Element, kLaneSlots>;
  const int first_slot = lane_index() * kLaneSlots;
  const ByteRows<Element> rows(coefficients + first_slot, columns);
  float sums[kLaneSlots] = {};
  for (NeighbourLanes neighbours(direction, node); neighbours.next();) {
#pragma unroll 8
    for (int i = 0; i < 16; ++i) {
      const auto of_edge = *reinterpret_cast<const Coefficients*>(rows[neighbours.at(i)]);
#pragma unroll
      for (int s = 0; s < kLaneSlots; ++s) {
        if (i < neighbours.count()) sums[s] += float(of_edge.values[s]);
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kLaneSlots; ++s) {
    const int tile = (first_slot + s) % kSlots<kTiles>;
    if (tile < kTiles) store(tile, first_slot / kSlots<kTiles>, sums[s]);
  }
}

// Calls store(tile, label of 8, values) for the labels that this lane has the values of, of its
// features.
template <class F, int kTiles, class Store>
__device__ void for_each_label(const float (&sums)[F::kProducts][kTiles][4], const Store& store) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float values[F::kVector];
#pragma unroll
      for (int p = 0; p < F::kProducts; ++p) {
        values[2 * p] = sums[p][tile][half];
        values[2 * p + 1] = sums[p][tile][half + 2];
      }
      store(tile, lane_index() % 4 * 2 + half, values);
    }
  }
}

}  // namespace deepcrf::cuda
