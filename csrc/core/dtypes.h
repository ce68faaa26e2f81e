// Element types of tensors: run-time tags, the 16-bit storage types, and dispatch over them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/checks.h"
#include "core/host_device.h"

namespace deepcrf {

enum class DType { float32, float64, bfloat16, float16, int16, int32, int64, uint8, boolean };

// The 16 high bits of a float32; conversion from float rounds to nearest even and keeps NaN.
struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;

  DEEPCRF_HOST_DEVICE explicit bfloat16(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof(word));
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((word >> 16) | 0x0040u);
    } else {
      bits = static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
    }
  }

  DEEPCRF_HOST_DEVICE operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, sizeof(value));
    return value;
  }
};
static_assert(sizeof(bfloat16) == 2, "bfloat16 must be two bytes");

// IEEE binary16; conversion from float rounds to nearest even, overflows to infinity, keeps NaN.
struct float16 {
  uint16_t bits;

  float16() = default;

  DEEPCRF_HOST_DEVICE explicit float16(float value) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    uint32_t word;
    memcpy(&word, &value, sizeof(word));
    const uint32_t sign = word & 0x80000000u;
    word ^= sign;
    if (word >= 0x47800000u) {  // 65536 and more, or NaN
      bits = word > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (word < 0x38800000u) {  // subnormal: aligned by an addition, which rounds
      constexpr uint32_t kAligning = 0x3f000000u;  // 0.5, whose last bit is 2^-24
      float magnitude, aligning;
      memcpy(&magnitude, &word, sizeof(word));
      memcpy(&aligning, &kAligning, sizeof(kAligning));
      magnitude += aligning;
      memcpy(&word, &magnitude, sizeof(word));
      bits = static_cast<uint16_t>(word - kAligning);
    } else {
      bits = static_cast<uint16_t>((word - (112u << 23) + 0xfffu + ((word >> 13) & 1u)) >> 13);
    }
    bits = static_cast<uint16_t>(bits | sign >> 16);
#endif
  }

  DEEPCRF_HOST_DEVICE operator float() const {
    float value;
#ifdef __CUDA_ARCH__
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
#else
    const uint32_t exponent = bits & 0x7c00u;
    uint32_t word = static_cast<uint32_t>(bits & 0x7fffu) << 13;
    if (exponent == 0) {  // subnormal: a multiple of 2^-24
      value = static_cast<float>(bits & 0x3ffu) * 5.9604644775390625e-8f;
      memcpy(&word, &value, sizeof(word));
    } else {
      word += (exponent == 0x7c00u ? 224u : 112u) << 23;
    }
    word |= static_cast<uint32_t>(bits & 0x8000u) << 16;
    memcpy(&value, &word, sizeof(value));
#endif
    return value;
  }
};
static_assert(sizeof(float16) == 2, "float16 must be two bytes");

// The type sums are kept in: float32, and float64 for float64.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// The same at run time, of a floating-point dtype.
inline DType accumulator_dtype(DType dtype) {
  return dtype == DType::float64 ? DType::float64 : DType::float32;
}

template <class T>
struct DTypeOf;
// clang-format off
template <> struct DTypeOf<float>    { static constexpr DType value = DType::float32; };
template <> struct DTypeOf<double>   { static constexpr DType value = DType::float64; };
template <> struct DTypeOf<bfloat16> { static constexpr DType value = DType::bfloat16; };
template <> struct DTypeOf<float16>  { static constexpr DType value = DType::float16; };
template <> struct DTypeOf<int16_t>  { static constexpr DType value = DType::int16; };
template <> struct DTypeOf<int32_t>  { static constexpr DType value = DType::int32; };
template <> struct DTypeOf<int64_t>  { static constexpr DType value = DType::int64; };
template <> struct DTypeOf<uint8_t>  { static constexpr DType value = DType::uint8; };
template <> struct DTypeOf<bool>     { static constexpr DType value = DType::boolean; };
// clang-format on

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float64: return "float64";
    case DType::bfloat16: return "bfloat16";
    case DType::float16: return "float16";
    case DType::int16: return "int16";
    case DType::int32: return "int32";
    case DType::int64: return "int64";
    case DType::uint8: return "uint8";
    case DType::boolean: return "bool";
  }
  return "unknown";
}

// Bytes of an element.
inline size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64: return 8;
    case DType::float32:
    case DType::int32: return 4;
    case DType::bfloat16:
    case DType::float16:
    case DType::int16: return 2;
    case DType::uint8:
    case DType::boolean: return 1;
  }
  return 0;
}

// Calls function(T{}) with T = float, double, bfloat16 or float16:
//   dispatch_floating(dtype, "source", [&](auto tag) { using T = decltype(tag); ... });
template <class Function>
void dispatch_floating(DType dtype, const char* name, Function&& function) {
  switch (dtype) {
    case DType::float32: return function(float{});
    case DType::float64: return function(double{});
    case DType::bfloat16: return function(bfloat16{});
    case DType::float16: return function(float16{});
    default: break;
  }
  throw Error(
      concatenate(name, " must be float32, float64, bfloat16 or float16, got ", dtype_name(dtype)));
}

// The same for kernels that read no 16-bit type: T = float or double.
template <class Function>
void dispatch_native_floating(DType dtype, const char* name, Function&& function) {
  switch (dtype) {
    case DType::float32: return function(float{});
    case DType::float64: return function(double{});
    default: break;
  }
  throw Error(concatenate(name, " must be float32 or float64, got ", dtype_name(dtype)));
}

}  // namespace deepcrf
