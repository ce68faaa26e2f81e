// __nv_bfloat16 and its conversions and arithmetic; every operation rounds its float32 result.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16_raw {
  unsigned short x;
};

struct alignas(2) __nv_bfloat16 {
  unsigned short bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(__nv_bfloat16_raw raw) : bits(raw.x) {}
  __nv_bfloat16(float value) {
    const unsigned word = __float_as_uint(value);
    bits = isnan(value) ? 0x7fff
                        : static_cast<unsigned short>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
  operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __double2bfloat16(double x) { return static_cast<float>(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }

inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }

#define CUDA_ON_HOST_BFLOAT16(name, expression)                          \
  inline __nv_bfloat16 name(__nv_bfloat16 first, __nv_bfloat16 second) { \
    const float a = first;                                               \
    const float b = second;                                              \
    return __nv_bfloat16(expression);                                    \
  }                                                                      \
  inline __nv_bfloat162 name##2(__nv_bfloat162 a, __nv_bfloat162 b) {    \
    return {name(a.x, b.x), name(a.y, b.y)};                             \
  }
CUDA_ON_HOST_BFLOAT16(__hadd, a + b)
CUDA_ON_HOST_BFLOAT16(__hsub, a - b)
CUDA_ON_HOST_BFLOAT16(__hmul, a* b)
CUDA_ON_HOST_BFLOAT16(__hmax, fmaxf(a, b))
CUDA_ON_HOST_BFLOAT16(__hmin, fminf(a, b))
#undef CUDA_ON_HOST_BFLOAT16
inline __nv_bfloat16 __hmax_nan(__nv_bfloat16 a, __nv_bfloat16 b) {
  if (isnan(float(a)) || isnan(float(b))) return __nv_bfloat16_raw{0x7fff};
  return __hmax(a, b);
}
inline __nv_bfloat162 __hmax2_nan(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)};
}
// All bits of a half where a > b, or one is NaN.
inline unsigned __hgtu2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
  return (float(a.x) <= float(b.x) ? 0u : 0xffffu) | (float(a.y) <= float(b.y) ? 0u : 0xffff0000u);
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return fmaf(a, b, c);
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
