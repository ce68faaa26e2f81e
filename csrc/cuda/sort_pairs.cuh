// A stable sort of pairs of a key and a value, by the digits of the keys, lowest first.
#pragma once

#include "core/workspace.h"
#include "cuda/scan.cuh"

namespace deepcrf::cuda {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

// Pairs that a warp sorts at a time.
constexpr int kSortTile = 32 * kWarpSize;

__device__ inline int digit_of(int32_t key, int shift) { return (key >> shift) & (kDigits - 1); }

// How often each digit occurs in every tile. One warp a tile.
static __global__ void count_digits_kernel(const int32_t* keys,  // [count]
                                           int64_t count, int shift,
                                           int32_t* counts) {  // [digits, tiles]
  __shared__ int32_t digits[kWarpsPerBlock][kDigits];
  int32_t* histogram = digits[threadIdx.x / kWarpSize];
  const int64_t tiles = ceil_div<int64_t>(count, kSortTile);
  for (int64_t tile = first_warp(); tile < tiles; tile += num_warps()) {
    for (int digit = lane_index(); digit < kDigits; digit += kWarpSize) histogram[digit] = 0;
    __syncwarp();
    for (int64_t i = tile * kSortTile + lane_index(); i < (tile + 1) * kSortTile && i < count;
         i += kWarpSize) {
      atomicAdd(&histogram[digit_of(keys[i], shift)], 1);
    }
    __syncwarp();
    for (int digit = lane_index(); digit < kDigits; digit += kWarpSize) {
      counts[digit * tiles + tile] = histogram[digit];
    }
    __syncwarp();
  }
}

// Moves every pair to its place; without values, that of a key is its position. One warp a tile, in
// order.
static __global__ void place_digits_kernel(const int32_t* keys,    // [count]
                                           const int32_t* values,  // [count], or null
                                           int64_t count, int shift,
                                           const int32_t* offsets,    // [digits, tiles]
                                           int32_t* sorted_keys,      // [count]
                                           int32_t* sorted_values) {  // [count]
  __shared__ int32_t next[kWarpsPerBlock][kDigits];
  int32_t* cursors = next[threadIdx.x / kWarpSize];
  const int64_t tiles = ceil_div<int64_t>(count, kSortTile);
  for (int64_t tile = first_warp(); tile < tiles; tile += num_warps()) {
    for (int digit = lane_index(); digit < kDigits; digit += kWarpSize) {
      cursors[digit] = offsets[digit * tiles + tile];
    }
    __syncwarp();
    for (int64_t first = tile * kSortTile; first < (tile + 1) * kSortTile && first < count;
         first += kWarpSize) {
      const int64_t i = first + lane_index();
      const int32_t key = i < count ? keys[i] : 0;
      const int digit = i < count ? digit_of(key, shift) : kDigits;  // no digit past the end
      const unsigned same = __match_any_sync(kAllLanes, digit);
      const int rank = __popc(same & ((1u << lane_index()) - 1));
      int32_t place = 0;
      if (i < count) {
        place = cursors[digit] + rank;
        sorted_keys[place] = key;
        sorted_values[place] = values == nullptr ? static_cast<int32_t>(i) : values[i];
      }
      __syncwarp();
      if (i < count && rank == __popc(same) - 1) cursors[digit] = place + 1;
      __syncwarp();
    }
  }
}

struct SortWorkspace {
  int32_t* keys[2];    // [count], sorted from one into the other
  int32_t* values[2];  // [count]
  int32_t* counts;     // [digits, tiles]
  int32_t* tile_sums;

  SortWorkspace(Workspace& workspace, int64_t count) {
    for (int i = 0; i < 2; ++i) {
      keys[i] = workspace.take<int32_t>(count);
      values[i] = workspace.take<int32_t>(count);
    }
    const int64_t num_counts = kDigits * ceil_div<int64_t>(count, kSortTile);
    counts = workspace.take<int32_t>(num_counts);
    tile_sums = workspace.take<int32_t>(num_scan_tiles(num_counts));
  }
};

// Sorts the pairs of a key, in 0..num_keys-1, and its position; returns which arrays hold them
// then.
inline int sort_positions(const SortWorkspace& workspace,
                          const int32_t* keys,  // [count]
                          int64_t count, int64_t num_keys, void* stream) {
  const int64_t tiles = ceil_div<int64_t>(count, kSortTile);
  const unsigned int grid = grid_size(tiles, kWarpsPerBlock);
  const int32_t* values = nullptr;
  int to = 0;
  for (int shift = 0; shift == 0 || (num_keys - 1) >> shift > 0; shift += kDigitBits) {
    launch("count_digits", count_digits_kernel, grid, kThreadsPerBlock, 0, stream, keys, count,
           shift, workspace.counts);
    exclusive_scan(workspace.counts, kDigits * tiles, workspace.tile_sums, nullptr, stream);
    launch("place_digits", place_digits_kernel, grid, kThreadsPerBlock, 0, stream, keys, values,
           count, shift, workspace.counts, workspace.keys[to], workspace.values[to]);
    keys = workspace.keys[to];
    values = workspace.values[to];
    to = 1 - to;
  }
  return 1 - to;
}

}  // namespace deepcrf::cuda
