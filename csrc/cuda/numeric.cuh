// Arithmetic that kernels share: loads that widen, warp reductions, exponentials.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtypes.h"

namespace deepcrf::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Scratch memory of what exists a block of nodes or edges at a time: it stays in the L2 cache of a
// large device. Tests on the host have small problems go through several blocks.
#ifdef DEEPCRF_CUDA_ON_HOST
constexpr int64_t kScratchBytes = 16 << 10;
#else
constexpr int64_t kScratchBytes = 32 << 20;
#endif

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
__host__ __device__ constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

// Types of 16 bits, which the tensor cores multiply: bfloat16 and float16.
template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;

// Values that one thread moves at once: 16 bytes, or 8 of a half.
template <class T>
constexpr int kVector = 4;
template <>
constexpr int kVector<double> = 2;

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Packed {
  T values[kCount];
};

template <class T>
bool is_aligned(const T* pointer, int count) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * count) == 0;
}

// values = pointer[0..kCount-1], zero from `valid` on. `aligned`: all kCount are there, at an
// address that allows one vector access.
template <class T, int kCount>
__device__ void load_values(const T* pointer, int64_t valid, bool aligned,
                            Accumulator<T> (&values)[kCount]) {
  if (aligned) {
    const auto packed = *reinterpret_cast<const Packed<T, kCount>*>(pointer);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = packed.values[i];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = i < valid ? Accumulator<T>(pointer[i]) : 0;
  }
}

// pointer[i] = values[i] for i < valid.
template <class T, int kCount>
__device__ void store_values(T* pointer, int64_t valid, bool aligned,
                             const Accumulator<T> (&values)[kCount]) {
  if (aligned) {
    Packed<T, kCount> packed;
#pragma unroll
    for (int i = 0; i < kCount; ++i) packed.values[i] = T(values[i]);
    *reinterpret_cast<Packed<T, kCount>*>(pointer) = packed;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < valid) pointer[i] = T(values[i]);
    }
  }
}

// Keeps NaN.
template <class T>
__device__ T relu(T value) {
  return value < T(0) ? T(0) : value;
}

template <class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
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

__device__ inline float exponential(float value) { return expf(value); }
__device__ inline double exponential(double value) { return exp(value); }
__device__ inline float logarithm(float value) { return logf(value); }
__device__ inline double logarithm(double value) { return log(value); }

// The row of compressed rows that entry `e` lies in.
__device__ inline int64_t row_of(const int64_t* row_offsets,  // [num_rows + 1]
                                 int64_t num_rows, int64_t e) {
  int64_t low = 0;
  int64_t high = num_rows;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (row_offsets[middle] <= e) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
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
