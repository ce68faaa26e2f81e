// A of a node, and its product with the weight, on the tensor cores in TensorFloat32.
//
// As tensor_halves.cuh, but products are of 8 neighbours, or features, and a lane takes four
// consecutive features, g * 4 + 2i and g * 4 + 2i + 1 being rows g and g + 8 of product i.
#pragma once

#include "cuda/label_blocks.cuh"
#include "cuda/message_directions.cuh"
#include "cuda/mma.cuh"
#include "cuda/tensor_halves.cuh"

namespace deepcrf::cuda {

// Elements between A of two nodes: lanes of different nodes lie in different banks.
template <int kLabels>
constexpr int kNodePitch<tf32, kLabels> = kLabels * MessageBlock<tf32>::kFeatures + 16;

// Four features of a row from `feature` on; zeros past the end of the row.
template <bool kVectorised>
__device__ void load_features(const tf32* row, int64_t feature, int64_t num_features,
                              float (&values)[4]) {
  if constexpr (kVectorised) {
    float4 all = {0, 0, 0, 0};
    if (feature < num_features) all = *reinterpret_cast<const float4*>(row + feature);
    values[0] = all.x;
    values[1] = all.y;
    values[2] = all.z;
    values[3] = all.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = feature + i < num_features ? row[feature + i].value : 0;
  }
}

__device__ inline uint32_t tf32_bits(float value) { return __float_as_uint(round_to_tf32(value)); }

__device__ inline float aggregate_scale(const Direction<tf32>&, int64_t) { return 1; }

// Writes A of one node and a block of labels, [kLabels, kFeatures], and, where asked, the sums of
// the neighbours' coefficients. One warp.
template <int kLabels, bool kVectorised>
__device__ void aggregate_on_tensor_cores(
    const Direction<tf32>& direction, int64_t node, int64_t first_feature,
    const tf32* coefficients,  // [N, columns], the block's first on
    int columns, tf32* aggregates,
    float* coefficient_sums) {  // [kLabels], or null
  constexpr int kTiles = kLabels / 8;
  const int64_t D = direction.num_features;
  const int group = lane_index() / 4;
  const int64_t feature = first_feature + group * 4;
  float self[4];
  load_features<kVectorised>(direction.self + node * D, feature, D, self);
  float sums[2][kTiles][4] = {};
  float label_sums[kTiles] = {};  // over this lane's neighbours, of label `group` of every tile
  const int64_t begin = direction.row_offsets[node];
  const int64_t end = direction.row_offsets[node + 1];
  for (int64_t first = begin; first < end; first += 16) {
    int32_t neighbours[4];
    float hidden[4][4];   // [neighbour, feature]
    float weights[4][4];  // [neighbour, tile of labels]
    const auto edge = [&](int i) { return first + lane_index() % 4 + i * 4; };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      neighbours[i] = direction.neighbours[edge(i) < end ? edge(i) : begin];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load_features<kVectorised>(direction.other + neighbours[i] * D, feature, D, hidden[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 packed = *reinterpret_cast<const float4*>(
          coefficients + static_cast<int64_t>(neighbours[i]) * columns + group * 4);
      const bool valid = edge(i) < end;
      weights[i][0] = valid ? packed.x : 0;
      weights[i][1] = valid ? packed.y : 0;
      weights[i][2] = valid ? packed.z : 0;
      weights[i][3] = valid ? packed.w : 0;
    }
    if (coefficient_sums != nullptr) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) label_sums[tile] += weights[i][tile];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int v = 0; v < 4; ++v) hidden[i][v] = round_to_tf32(relu(self[v] + hidden[i][v]));
    }
#pragma unroll
    for (int i = 0; i < 4; i += 2) {  // 8 neighbours
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint32_t b[2] = {__float_as_uint(weights[i][tile]),
                               __float_as_uint(weights[i + 1][tile])};
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const uint32_t a[4] = {__float_as_uint(hidden[i][2 * part]),
                                 __float_as_uint(hidden[i][2 * part + 1]),
                                 __float_as_uint(hidden[i + 1][2 * part]),
                                 __float_as_uint(hidden[i + 1][2 * part + 1])};
          mma_m16n8k8_tf32(sums[part][tile], a, b);
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (coefficient_sums != nullptr) {
      label_sums[tile] += __shfl_xor_sync(kAllLanes, label_sums[tile], 1);
      label_sums[tile] += __shfl_xor_sync(kAllLanes, label_sums[tile], 2);
      if (lane_index() % 4 == 0) coefficient_sums[tile * 8 + group] = label_sums[tile];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int label = tile * 8 + lane_index() % 4 * 2 + half;
      const float4 rounded = {
          round_to_tf32(sums[0][tile][half]), round_to_tf32(sums[0][tile][half + 2]),
          round_to_tf32(sums[1][tile][half]), round_to_tf32(sums[1][tile][half + 2])};
      *reinterpret_cast<float4*>(aggregates + label * MessageBlock<tf32>::kFeatures +
                                 group_place(group, label) * 4) = rounded;
    }
  }
}

// Products of A of 16 nodes with the weight of 8 receiver labels, summed over this warp's labels of
// the neighbours. Lane t takes features 4t..4t+3 of every 16.
template <int kLabels, bool kVectorised>
__device__ void contract_on_tensor_cores(const Direction<tf32>& direction, int64_t first_feature,
                                         int num_labels, int first_label, int first_receiver,
                                         const tf32* aggregates,  // [16, kNodePitch]
                                         float (&sums)[4]) {
  constexpr int kFeatures = MessageBlock<tf32>::kFeatures;
  constexpr int kWarpLabels = kLabels / kWarpsPerBlock;
  constexpr int kParts = kFeatures / 16;
  const int64_t D = direction.num_features;
  const int receiver = first_receiver + lane_index() / 4;
  const int lane_feature = lane_index() % 4 * 4;
  const int first = threadIdx.x / kWarpSize;
  // All of this lane's weights first: they are under way together.
  float weights[kWarpLabels][kParts][4];
#pragma unroll
  for (int i = 0; i < kWarpLabels; ++i) {
    const int label = first_label + first + i * kWarpsPerBlock;
    const bool is_pair = receiver < num_labels && label < num_labels;
    const tf32* weight = direction.weight + (is_pair ? direction.pair(receiver, label) * D : 0);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      load_features<kVectorised>(weight, is_pair ? first_feature + part * 16 + lane_feature : D, D,
                                 weights[i][part]);
    }
  }
#pragma unroll
  for (int i = 0; i < kWarpLabels; ++i) {
    const int j = first + i * kWarpsPerBlock;
    if (first_label + j >= num_labels) break;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int place = group_place(part * 4 + lane_index() % 4, j);
      const tf32* row =
          aggregates + lane_index() / 4 * kNodePitch<tf32, kLabels> + j * kFeatures + place * 4;
      const uint4 upper = *reinterpret_cast<const uint4*>(row);
      const uint4 lower = *reinterpret_cast<const uint4*>(row + 8 * kNodePitch<tf32, kLabels>);
      const float (&w)[4] = weights[i][part];
      const uint32_t a_first[4] = {upper.x, lower.x, upper.y, lower.y};
      const uint32_t a_second[4] = {upper.z, lower.z, upper.w, lower.w};
      const uint32_t b_first[2] = {tf32_bits(w[0]), tf32_bits(w[1])};
      const uint32_t b_second[2] = {tf32_bits(w[2]), tf32_bits(w[3])};
      mma_m16n8k8_tf32(sums, a_first, b_first);
      mma_m16n8k8_tf32(sums, a_second, b_second);
    }
  }
}

}  // namespace deepcrf::cuda
