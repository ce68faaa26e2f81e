// Loads and stores of several values at once, which widen and round.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

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

// Rows of one pitch, below 4 GB, addressed by one multiplication.
template <class T>
struct ByteRows {
  const char* first;
  uint32_t pitch;

  __device__ ByteRows(const T* first, int64_t columns)
      : first(reinterpret_cast<const char*>(first)),
        pitch(static_cast<uint32_t>(columns * sizeof(T))) {}

  __device__ const T* operator[](int32_t row) const {
    return reinterpret_cast<const T*>(first +
                                      static_cast<uint64_t>(static_cast<uint32_t>(row)) * pitch);
  }
};

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

// The value rounded to T, on a device by one instruction.
template <class T>
__device__ T narrowed(Accumulator<T> value) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, bfloat16>) {
    T rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(value));
    return rounded;
  } else {
    return T(value);
  }
#else
  return T(value);
#endif
}

// pointer[i] = values[i] for i < valid.
template <class T, int kCount>
__device__ void store_values(T* pointer, int64_t valid, bool aligned,
                             const Accumulator<T> (&values)[kCount]) {
  if (aligned) {
    Packed<T, kCount> packed;
#pragma unroll
    for (int i = 0; i < kCount; ++i) packed.values[i] = narrowed<T>(values[i]);
    *reinterpret_cast<Packed<T, kCount>*>(pointer) = packed;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < valid) pointer[i] = narrowed<T>(values[i]);
    }
  }
}

// Writes 16 bytes to global memory by one instruction; of an assignment the compiler may make four.
__device__ inline void store_16_bytes(void* pointer, const uint4& values) {
#ifdef __CUDACC__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(pointer)),
               "r"(values.x), "r"(values.y), "r"(values.z), "r"(values.w)
               : "memory");
#else
  *static_cast<uint4*>(pointer) = values;
#endif
}

// The same of values that are 16 bytes when rounded.
template <class T, int kCount>
__device__ void store_vector(T* pointer, const Accumulator<T> (&values)[kCount]) {
  Packed<T, kCount> packed;
#pragma unroll
  for (int i = 0; i < kCount; ++i) packed.values[i] = narrowed<T>(values[i]);
  uint4 bits;
  static_assert(sizeof(packed) == sizeof(bits));
  memcpy(&bits, &packed, sizeof(bits));
  store_16_bytes(pointer, bits);
}

}  // namespace deepcrf::cuda
