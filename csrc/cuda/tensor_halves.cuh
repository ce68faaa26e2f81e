// A of a node, and its product with the weight, on the tensor cores in bfloat16 or float16.
//
// A warp forms A of a node,
//   A[d, j] = sum over neighbours q of  relu(self + other_q)[d] * Q_q[j],
// as products of 16 features by 16 neighbours with 16 neighbours by 8 labels. As the features of a
// product may be any, a lane takes 8 consecutive ones, g * 8 + 2i and g * 8 + 2i + 1 being rows g
// and g + 8 of product i: it forms the hidden vectors in the very registers that the product reads.
#pragma once

#include "cuda/label_blocks.cuh"
#include "cuda/message_directions.cuh"
#include "cuda/mma.cuh"

namespace deepcrf::cuda {

constexpr int kHalfFeatures = MessageBlock<bfloat16>::kFeatures;
constexpr int kLaneFeatures = kHalfFeatures / 8;
static_assert(kLaneFeatures == MessageBlock<bfloat16>::kVector);

// Elements between A of two nodes: lanes of different nodes lie in different banks.
template <class T, int kLabels>
constexpr int kNodePitch = kLabels * kHalfFeatures + 32;

// Where the features of a group of lanes, 16 bytes, stand in a row of A of eight groups: elsewhere
// for every pair of labels, so that lanes that write different ones use different banks.
__device__ inline int group_place(int group, int label) { return group ^ (label / 2 % 4 * 2); }

// Eight features of a row from `feature` on, as four pairs; zeros past the end of the row.
template <bool kVectorised, class T>
__device__ void load_pairs(const T* row, int64_t feature, int64_t num_features,
                           uint32_t (&pairs)[4]) {
  if constexpr (kVectorised) {
    uint4 all = {0, 0, 0, 0};
    if (feature < num_features) all = *reinterpret_cast<const uint4*>(row + feature);
    pairs[0] = all.x;
    pairs[1] = all.y;
    pairs[2] = all.z;
    pairs[3] = all.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t d = feature + 2 * i;
      const uint32_t low = d < num_features ? row[d].bits : 0;
      const uint32_t high = d + 1 < num_features ? row[d + 1].bits : 0;
      pairs[i] = low | high << 16;
    }
  }
}

// relu(a + b) of a pair, the sum rounded; keeps NaN.
template <class T>
__device__ uint32_t hidden_pair(uint32_t a, uint32_t b) {
  return pair_bits(
      __hmax2_nan(__hadd2(pair_of_bits<T>(a), pair_of_bits<T>(b)), pair_of_bits<T>(0)));
}

// The power of two that A of a node is multiplied by, so that a sum over many neighbours is no
// larger than float16 holds. bfloat16 holds what float32 does.
template <class T>
__device__ float aggregate_scale(const Direction<T>& direction, int64_t node) {
  if constexpr (std::is_same_v<T, bfloat16>) return 1;
  const int64_t degree = direction.row_offsets[node + 1] - direction.row_offsets[node];
  return degree == 0 ? 1 : __uint_as_float(static_cast<unsigned>(64 + __clzll(degree)) << 23);
}

// A half of these bits.
template <class T>
__device__ float widened(uint16_t bits) {
  T value;
  memcpy(&value, &bits, sizeof(bits));
  return value;
}

// The lower, and the upper, halves of two pairs as a pair.
__device__ inline uint32_t lower_halves(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
__device__ inline uint32_t upper_halves(uint32_t a, uint32_t b) {
  return a >> 16 | (b & 0xffff0000u);
}

// Writes A of one node and a block of labels, [kLabels, kHalfFeatures], times aggregate_scale(),
// and, where asked, the sums of the neighbours' coefficients. One warp.
template <int kLabels, bool kVectorised, class T>
__device__ void aggregate_on_tensor_cores(
    const Direction<T>& direction, int64_t node, int64_t first_feature,
    const T* coefficients,  // [N, columns], the block's first on
    int columns, T* aggregates,
    float* coefficient_sums) {  // [kLabels], or null
  static_assert(sizeof(T) == 2);
  constexpr int kTiles = kLabels / 8;
  const int64_t D = direction.num_features;
  const int group = lane_index() / 4;
  const int64_t feature = first_feature + group * kLaneFeatures;
  uint32_t self[4];
  load_pairs<kVectorised>(direction.self + node * D, feature, D, self);
  float sums[4][kTiles][4] = {};
  float label_sums[kTiles] = {};  // over this lane's neighbours, of label group of every tile
  const int64_t begin = direction.row_offsets[node];
  const int64_t end = direction.row_offsets[node + 1];
  for (int64_t first = begin; first < end; first += 16) {
    uint32_t hidden[4][4];   // [neighbour, pair of features]
    uint16_t weights[4][4];  // [neighbour, tile of labels]
    int32_t neighbours[4];
    const int64_t own = first + lane_index() % 4 * 2;
    const auto edge = [&](int i) { return own + i % 2 + i / 2 * 8; };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      neighbours[i] = direction.neighbours[edge(i) < end ? edge(i) : begin];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load_pairs<kVectorised>(direction.other + neighbours[i] * D, feature, D, hidden[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto packed = *reinterpret_cast<const Packed<uint16_t, 4>*>(
          coefficients + static_cast<int64_t>(neighbours[i]) * columns + group * 4);
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        weights[i][tile] = edge(i) < end ? packed.values[tile] : 0;
      }
    }
    if (coefficient_sums != nullptr) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) label_sums[tile] += widened<T>(weights[i][tile]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        hidden[i][pair] = hidden_pair<T>(self[pair], hidden[i][pair]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint32_t b[2] = {weights[0][tile] | static_cast<uint32_t>(weights[1][tile]) << 16,
                             weights[2][tile] | static_cast<uint32_t>(weights[3][tile]) << 16};
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const uint32_t a[4] = {lower_halves(hidden[0][pair], hidden[1][pair]),
                               upper_halves(hidden[0][pair], hidden[1][pair]),
                               lower_halves(hidden[2][pair], hidden[3][pair]),
                               upper_halves(hidden[2][pair], hidden[3][pair])};
        mma_m16n8k16<T>(sums[pair][tile], a, b);
      }
    }
  }
  if (coefficient_sums != nullptr) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      label_sums[tile] += __shfl_xor_sync(kAllLanes, label_sums[tile], 1);
      label_sums[tile] += __shfl_xor_sync(kAllLanes, label_sums[tile], 2);
      if (lane_index() % 4 == 0) coefficient_sums[tile * 8 + group] = label_sums[tile];
    }
  }
  const float scale = aggregate_scale(direction, node);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int label = tile * 8 + lane_index() % 4 * 2 + half;
      uint4 packed;
      packed.x = pack_pair<T>(scale * sums[0][tile][half], scale * sums[0][tile][half + 2]);
      packed.y = pack_pair<T>(scale * sums[1][tile][half], scale * sums[1][tile][half + 2]);
      packed.z = pack_pair<T>(scale * sums[2][tile][half], scale * sums[2][tile][half + 2]);
      packed.w = pack_pair<T>(scale * sums[3][tile][half], scale * sums[3][tile][half + 2]);
      *reinterpret_cast<uint4*>(aggregates + label * kHalfFeatures +
                                group_place(group, label) * kLaneFeatures) = packed;
    }
  }
}

// Products of A of 16 nodes with the weight of 8 receiver labels, summed over this warp's
// labels of the neighbours. The features of a product may be any here too: lane t takes 8t..8t+7 of
// every 32.
template <int kLabels, bool kVectorised, class T>
__device__ void contract_on_tensor_cores(const Direction<T>& direction, int64_t first_feature,
                                         int num_labels, int first_label, int first_receiver,
                                         const T* aggregates,  // [16, kNodePitch]
                                         float (&sums)[4]) {
  static_assert(sizeof(T) == 2);
  const int64_t D = direction.num_features;
  const int receiver = first_receiver + lane_index() / 4;
  const int lane_feature = lane_index() % 4 * 8;
  const int first = threadIdx.x / kWarpSize;
  // All of this lane's weights first: they are under way together.
  constexpr int kWarpLabels = kLabels / kWarpsPerBlock;
  uint32_t weights[kWarpLabels][kHalfFeatures / 32][4];
#pragma unroll
  for (int i = 0; i < kWarpLabels; ++i) {
    const int label = first_label + first + i * kWarpsPerBlock;
    const bool is_pair = receiver < num_labels && label < num_labels;
    const T* weight = direction.weight + (is_pair ? direction.pair(receiver, label) * D : 0);
#pragma unroll
    for (int part = 0; part < kHalfFeatures / 32; ++part) {
      load_pairs<kVectorised>(weight, is_pair ? first_feature + part * 32 + lane_feature : D, D,
                              weights[i][part]);
    }
  }
#pragma unroll
  for (int i = 0; i < kWarpLabels; ++i) {
    const int j = first + i * kWarpsPerBlock;
    if (first_label + j >= num_labels) break;
#pragma unroll
    for (int part = 0; part < kHalfFeatures / 32; ++part) {
      const int place = group_place(part * 4 + lane_index() % 4, j);
      const T* row = aggregates + lane_index() / 4 * kNodePitch<T, kLabels> + j * kHalfFeatures +
                     place * kLaneFeatures;
      const uint4 upper = *reinterpret_cast<const uint4*>(row);
      const uint4 lower = *reinterpret_cast<const uint4*>(row + 8 * kNodePitch<T, kLabels>);
      const uint32_t (&w)[4] = weights[i][part];
      const uint32_t a_first[4] = {upper.x, lower.x, upper.y, lower.y};
      const uint32_t a_second[4] = {upper.z, lower.z, upper.w, lower.w};
      const uint32_t b_first[2] = {w[0], w[1]};
      const uint32_t b_second[2] = {w[2], w[3]};
      mma_m16n8k16<T>(sums, a_first, b_first);
      mma_m16n8k16<T>(sums, a_second, b_second);
    }
  }
}

}  // namespace deepcrf::cuda
