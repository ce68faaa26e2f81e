// The edges of a node, walked by one warp on CUDA cores, each lane with its own features: rows and
// coefficients of the neighbours come to shared memory ahead of the work on them.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/label_blocks.cuh"
#include "cuda/message_directions.cuh"

namespace deepcrf::cuda {

// Features of one warp.
template <class T>
constexpr int kFeatureBlock = kVector<T> * kWarpSize;

// The feature-wise view of one lane: kVector features from `feature` on.
template <class T, bool kVectorised>
struct LaneFeatures {
  int64_t feature;
  int64_t valid;  // features left in the row, not positive past its end

  __device__ LaneFeatures(const Direction<T>& direction, int64_t block)
      : feature(block * kFeatureBlock<T> + lane_index() * kVector<T>),
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

// Edges whose rows are on their way to shared memory together; while they come, the warp works on
// as many that came before.
constexpr int kStageEdges = 8;

template <class T, int kLabels>
struct Stage {
  Packed<T, kVector<T>> rows[kStageEdges][kWarpSize];
  alignas(16) Accumulator<T> coefficients[kStageEdges][kLabels];
};

// Shared memory of one warp.
template <class T, int kLabels>
constexpr int kStageBytes = 2 * sizeof(Stage<T, kLabels>);

// Starts copying the rows and coefficients of a stage of edges. `neighbours` are those of 32 edges,
// a lane each, the stage's from `first` on; any node where there is no edge. Lanes past the end of
// a row, not `valid`, get zeros.
template <int kLabels, class T>
__device__ void copy_stage(const ByteRows<T>& rows,  // of this lane
                           bool valid, const ByteRows<Accumulator<T>>& coefficients,
                           int32_t neighbours, int first, Stage<T, kLabels>& stage) {
  static_assert(sizeof(stage.rows[0][0]) == 16);
#pragma unroll
  for (int i = 0; i < kStageEdges; ++i) {
    const int32_t neighbour = __shfl_sync(kAllLanes, neighbours, first + i);
    cp_async_16(&stage.rows[i][lane_index()], rows[neighbour], valid);
  }
  constexpr int kPieces = sizeof(stage.coefficients[0]) / 16;  // of a row of coefficients
#pragma unroll
  for (int first_piece = 0; first_piece < kStageEdges * kPieces; first_piece += kWarpSize) {
    const int piece = first_piece + lane_index();
    const int i = piece / kPieces;
    const int offset = piece % kPieces * 16;
    const int32_t neighbour = __shfl_sync(kAllLanes, neighbours, first + i);
    if (i < kStageEdges) {
      char* to = reinterpret_cast<char*>(stage.coefficients[i]) + offset;
      cp_async_16(to, reinterpret_cast<const char*>(coefficients[neighbour]) + offset);
    }
  }
  cp_async_commit();
}

// Calls visit(other, coefficients) for every neighbour of `node` in the order of its edges: this
// lane's features of it, and its coefficients of a block of labels, [kLabels].
template <int kLabels, class T, bool kVectorised, class Visit>
__device__ void for_each_edge(const Direction<T>& direction, int64_t node,
                              const LaneFeatures<T, kVectorised>& features,
                              const Accumulator<T>* coefficients,  // [N, columns], a block's
                              int columns, void* shared,           // [kStageBytes]
                              const Visit& visit) {
  using A = Accumulator<T>;
  A other[kVector<T>];
  const int64_t begin = direction.row_offsets[node];
  const int64_t end = direction.row_offsets[node + 1];
  if constexpr (kVectorised) {
    auto* stages = static_cast<Stage<T, kLabels>*>(shared);
    const bool valid = features.valid > 0;
    const ByteRows<T> rows(direction.other + (valid ? features.feature : 0),
                           direction.num_features);
    const ByteRows<A> coefficient_rows(coefficients, columns);
    const auto load_neighbours = [&](int64_t first) {
      const int64_t edge = first + lane_index();
      return edge < end ? direction.neighbours[edge] : 0;
    };
    int32_t neighbours = 0;
    int32_t next_neighbours = load_neighbours(begin);
    const auto copy = [&](int64_t edge) {  // edge - begin is a multiple of kStageEdges
      const int first = static_cast<unsigned>(edge - begin) % kWarpSize;
      if (first == 0) {
        neighbours = next_neighbours;
        next_neighbours = load_neighbours(edge + kWarpSize);
      }
      copy_stage<kLabels, T>(rows, valid, coefficient_rows, neighbours, first,
                             stages[static_cast<unsigned>(edge - begin) / kStageEdges % 2]);
    };
    const auto visit_staged = [&](const Stage<T, kLabels>& stage, int i) {
#pragma unroll
      for (int v = 0; v < kVector<T>; ++v) other[v] = stage.rows[i][lane_index()].values[v];
      visit(other, stage.coefficients[i]);
    };
    if (begin < end) copy(begin);
    for (int64_t edge = begin; edge < end; edge += kStageEdges) {
      if (edge + kStageEdges < end) {
        copy(edge + kStageEdges);
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      __syncwarp();  // what the other lanes copied
      const Stage<T, kLabels>& stage =
          stages[static_cast<unsigned>(edge - begin) / kStageEdges % 2];
      if (edge + kStageEdges <= end) {
#pragma unroll 4
        for (int i = 0; i < kStageEdges; ++i) visit_staged(stage, i);
      } else {
        for (int i = 0; i < end - edge; ++i) visit_staged(stage, i);
      }
      __syncwarp();  // all lanes have read it
    }
  } else {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t neighbour = direction.neighbours[e];
      features.load(direction.other + neighbour * direction.num_features, other);
      visit(other, coefficients + neighbour * columns);
    }
  }
}

}  // namespace deepcrf::cuda
