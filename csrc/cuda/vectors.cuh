// Loads and stores of several values at once, which widen and round.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtypes.h"

namespace deepcrf::cuda {

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

}  // namespace deepcrf::cuda
