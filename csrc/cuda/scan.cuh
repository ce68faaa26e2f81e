// Running sums of integers over a whole array.
#pragma once

#include "cuda/arithmetic.cuh"
#include "cuda/launch.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

// Values that a block sums at a time, and those of one of its threads.
constexpr int kScanItems = 8;
constexpr int kScanTile = kScanItems * kThreadsPerBlock;

// The sum of `value` over the threads before this one, and over all threads. All threads of the
// block must call.
__device__ inline int32_t block_exclusive_scan(int32_t value, int32_t* total) {
  __shared__ int32_t totals[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarpSize;
  int32_t inclusive = value;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, inclusive, offset);
    if (lane_index() >= offset) inclusive += other;
  }
  if (lane_index() == kWarpSize - 1) totals[warp] = inclusive;
  __syncthreads();
  int32_t before = 0;
  *total = 0;
  for (int w = 0; w < kWarpsPerBlock; ++w) {
    if (w < warp) before += totals[w];
    *total += totals[w];
  }
  __syncthreads();
  return before + inclusive - value;
}

static __global__ void sum_tiles_kernel(const int32_t* values,  // [count]
                                        int64_t count,
                                        int32_t* tile_sums) {  // [tiles]
  for (int64_t tile = blockIdx.x; tile * kScanTile < count; tile += gridDim.x) {
    int32_t sum = 0;
    for (int64_t i = tile * kScanTile + threadIdx.x; i < (tile + 1) * kScanTile && i < count;
         i += kThreadsPerBlock) {
      sum += values[i];
    }
    int32_t total;
    block_exclusive_scan(sum, &total);
    if (threadIdx.x == 0) tile_sums[tile] = total;
  }
}

// One block: tile_sums[i] = sum of the tiles before i.
static __global__ void scan_tile_sums_kernel(int32_t* tile_sums,  // [tiles]
                                             int64_t tiles,
                                             int32_t* total) {  // [1], or null
  int32_t carry = 0;
  for (int64_t first = 0; first < tiles; first += kThreadsPerBlock) {
    const int64_t i = first + threadIdx.x;
    int32_t sum;
    const int32_t before = block_exclusive_scan(i < tiles ? tile_sums[i] : 0, &sum);
    if (i < tiles) tile_sums[i] = carry + before;
    carry += sum;
  }
  if (threadIdx.x == 0 && total != nullptr) *total = carry;
}

static __global__ void scan_tiles_kernel(const int32_t* tile_sums,  // [tiles], of those before
                                         int64_t count,
                                         int32_t* values) {  // [count]
  for (int64_t tile = blockIdx.x; tile * kScanTile < count; tile += gridDim.x) {
    const int64_t first = tile * kScanTile + threadIdx.x * kScanItems;
    int32_t items[kScanItems];
    int32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      items[i] = first + i < count ? values[first + i] : 0;
      sum += items[i];
    }
    int32_t total;
    int32_t running = tile_sums[tile] + block_exclusive_scan(sum, &total);
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      if (first + i < count) values[first + i] = running;
      running += items[i];
    }
  }
}

inline int64_t num_scan_tiles(int64_t count) { return ceil_div<int64_t>(count, kScanTile); }

// values[i] = sum of values[0..i-1], and total = the sum of all. Sums must stay below 2^31.
inline void exclusive_scan(int32_t* values,  // [count]
                           int64_t count,
                           int32_t* tile_sums,  // [num_scan_tiles(count)], scratch
                           int32_t* total,      // [1], or null
                           void* stream) {
  const int64_t tiles = num_scan_tiles(count);
  launch("sum_tiles", sum_tiles_kernel, grid_size(tiles, 1), kThreadsPerBlock, 0, stream, values,
         count, tile_sums);
  launch("scan_tile_sums", scan_tile_sums_kernel, 1, kThreadsPerBlock, 0, stream, tile_sums, tiles,
         total);
  launch("scan_tiles", scan_tiles_kernel, grid_size(tiles, 1), kThreadsPerBlock, 0, stream,
         tile_sums, count, values);
}

}  // namespace deepcrf::cuda
