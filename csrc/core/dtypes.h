// Element types of tensors: run-time tags, the bfloat16 storage type, and dispatch over them.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/checks.h"
#include "core/host_device.h"

namespace deepcrf {

enum class DType { float32, float64, bfloat16, int16, int32, int64, uint8, boolean };

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

template <class T>
struct DTypeOf;
// clang-format off
template <> struct DTypeOf<float>    { static constexpr DType value = DType::float32; };
template <> struct DTypeOf<double>   { static constexpr DType value = DType::float64; };
template <> struct DTypeOf<bfloat16> { static constexpr DType value = DType::bfloat16; };
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
    case DType::int16: return "int16";
    case DType::int32: return "int32";
    case DType::int64: return "int64";
    case DType::uint8: return "uint8";
    case DType::boolean: return "bool";
  }
  return "unknown";
}

// Calls function(T{}) with T = float, double or bfloat16:
//   dispatch_floating(dtype, "source", [&](auto tag) { using T = decltype(tag); ... });
template <class Function>
void dispatch_floating(DType dtype, const char* name, Function&& function) {
  switch (dtype) {
    case DType::float32: return function(float{});
    case DType::float64: return function(double{});
    case DType::bfloat16: return function(bfloat16{});
    default: break;
  }
  throw Error(concatenate(name, " must be float32, float64 or bfloat16, got ", dtype_name(dtype)));
}

// The same for kernels without a bfloat16 path: T = float or double.
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
