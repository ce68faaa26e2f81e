// Warps: reductions over their lanes, and which of a kernel's warps or threads this one is.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace deepcrf::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Over the lanes of a warp, or of each group of kLanes of them.
template <int kLanes = kWarpSize, class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

template <class T>
__device__ T warp_min(T value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other < value ? other : value;
  }
  return value;
}

// The sums of several values over the lanes, kCount a power of two: that of values[lane % kCount].
// kCount - 1 shuffles and a few, where warp_sum takes five a value.
template <int kCount, int kSize, class T>
__device__ T warp_sums(T (&values)[kSize]) {
  static_assert(kCount <= kWarpSize && (kCount & (kCount - 1)) == 0);
  if constexpr (kCount > 1) {
    constexpr int kHalf = kCount / 2;
    const bool upper = threadIdx.x & kHalf;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const T sent = upper ? values[i] : values[i + kHalf];
      const T kept = upper ? values[i + kHalf] : values[i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, sent, kHalf);
    }
    return warp_sums<kHalf>(values);
  } else {
#pragma unroll
    for (int offset = kSize; offset < kWarpSize; offset *= 2) {
      values[0] += __shfl_xor_sync(kAllLanes, values[0], offset);
    }
    return values[0];
  }
}

// The sums of several values over each four lanes: values[i] becomes that of
// values[lane % 4 * kSize / 4 + i], i < kSize / 4.
template <int kSize, class T>
__device__ void quad_sums(T (&values)[kSize]) {
  static_assert(kSize % 4 == 0);
#pragma unroll
  for (int lane_bit = 2, size = kSize / 2; lane_bit > 0; lane_bit /= 2, size /= 2) {
    const bool upper = threadIdx.x & lane_bit;
#pragma unroll
    for (int i = 0; i < size; ++i) {
      const T sent = upper ? values[i] : values[i + size];
      const T kept = upper ? values[i + size] : values[i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, sent, lane_bit);
    }
  }
}

// Kernels whose warps work alone: `for (i = first_warp(); i < count; i += num_warps())`.
constexpr int kWarpsPerBlock = 4;
constexpr int kThreadsPerBlock = kWarpsPerBlock * kWarpSize;

__device__ inline int64_t first_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
}
__device__ inline int64_t num_warps() { return static_cast<int64_t>(gridDim.x) * kWarpsPerBlock; }
__device__ inline int lane_index() { return threadIdx.x % kWarpSize; }

// The same for threads.
__device__ inline int64_t first_thread() {
  return static_cast<int64_t>(blockIdx.x) * kThreadsPerBlock + threadIdx.x;
}
__device__ inline int64_t num_threads() {
  return static_cast<int64_t>(gridDim.x) * kThreadsPerBlock;
}

}  // namespace deepcrf::cuda
