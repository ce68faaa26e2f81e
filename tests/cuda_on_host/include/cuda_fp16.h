// __half and its conversions and arithmetic; every operation rounds its float32 result.
#pragma once

#include "core/dtypes.h"
#include "cuda_runtime.h"

struct __half_raw {
  unsigned short x;
};

struct alignas(2) __half {
  unsigned short bits;

  __half() = default;
  __half(__half_raw raw) : bits(raw.x) {}
  __half(float value) { bits = isnan(value) ? 0x7fff : deepcrf::float16(value).bits; }
  operator float() const {
    deepcrf::float16 value;
    value.bits = bits;
    return value;
  }
};

struct alignas(4) __half2 {
  __half x, y;
};

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short x) { return __half_raw{x}; }

inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }

inline __half __hadd(__half a, __half b) { return float(a) + float(b); }
inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half __hmax_nan(__half a, __half b) {
  if (isnan(float(a)) || isnan(float(b))) return __half_raw{0x7fff};
  return fmaxf(a, b);
}
inline __half2 __hmax2_nan(__half2 a, __half2 b) {
  return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)};
}
// All bits of a half where a > b, or one is NaN.
inline unsigned __hgtu2_mask(__half2 a, __half2 b) {
  return (float(a.x) <= float(b.x) ? 0u : 0xffffu) | (float(a.y) <= float(b.y) ? 0u : 0xffff0000u);
}
