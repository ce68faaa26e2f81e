// TensorFloat32: what the tensor cores multiply of a float32, its sign, exponent and upper 10 bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "core/dtypes.h"

namespace deepcrf::cuda {

// The nearest float with 10 bits of mantissa, ties away from zero; keeps NaN.
__device__ inline float round_to_tf32(float value) {
#ifdef __CUDACC__
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
#endif
  return __uint_as_float(bits);
}

// A float32 of a potential, or of what it is multiplied by, whose products are of TensorFloat32:
// rounded when it is made of a float, and not yet where it was stored as one.
struct tf32 {
  float value;

  tf32() = default;
  __device__ explicit tf32(float value) : value(round_to_tf32(value)) {}
  __device__ operator float() const { return value; }
};

// A float32 whose products are three of TensorFloat32, of its upper bits and of what is left.
struct tf32x3 {
  float value;

  tf32x3() = default;
  __device__ explicit tf32x3(float value) : value(value) {}
  __device__ operator float() const { return value; }
};
static_assert(sizeof(tf32) == sizeof(float) && sizeof(tf32x3) == sizeof(float));

// The TensorFloat32 values that stand for one.
template <class T>
constexpr int kTerms = std::is_same_v<T, tf32x3> ? 2 : 1;

// Types whose messages the tensor cores sum.
template <class T>
constexpr bool kOnTensorCores =
    sizeof(T) == 2 || std::is_same_v<T, tf32> || std::is_same_v<T, tf32x3>;

}  // namespace deepcrf::cuda
