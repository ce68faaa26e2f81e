// Warp-wide matrix products of halves and TensorFloat32: thin names for the PTX of sm_80 and later.
//
// Fragments of d[16x8] += a[16x16] * b[16x8], with g = lane / 4 and t = lane % 4 (PTX ISA,
// mma.m16n8k16):
//   a[0] = A[g, 2t..2t+1]      a[1] = A[g+8, 2t..2t+1]
//   a[2] = A[g, 2t+8..2t+9]    a[3] = A[g+8, 2t+8..2t+9]
//   b[0] = B[2t..2t+1, g]      b[1] = B[2t+8..2t+9, g]
//   d[0..1] = D[g, 2t..2t+1]   d[2..3] = D[g+8, 2t..2t+1]
// The lower index is in the lower half of a register. All 32 lanes must call, converged.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "core/dtypes.h"

#ifndef __CUDACC__
#include "cuda_on_host/mma.h"
#endif

namespace deepcrf::cuda {

// Row and column in a 16 x 8 product of element `part` of a lane's fragment d.
__device__ inline int fragment_row(int part) { return threadIdx.x % 32 / 4 + part / 2 * 8; }
__device__ inline int fragment_column(int part) { return threadIdx.x % 4 * 2 + part % 2; }

// Two halves in one register, as CUDA's own types; T is bfloat16 or float16.
template <class T>
using HalfPair = std::conditional_t<std::is_same_v<T, bfloat16>, __nv_bfloat162, __half2>;

template <class Pair>
__device__ __forceinline__ uint32_t pair_bits(const Pair& pair) {
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
template <class T>
__device__ __forceinline__ HalfPair<T> pair_of_bits(uint32_t bits) {
  HalfPair<T> pair;
  memcpy(&pair, &bits, sizeof(bits));
  return pair;
}

// Two floats, rounded, as one register: `low` in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return pair_bits(__floats2bfloat162_rn(low, high));
  } else {
    return pair_bits(__floats2half2_rn(low, high));
  }
}

#ifdef __CUDACC__

// d += a * b, of halves of type T.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// d[16x8] += a[16x8] * b[8x8] of TensorFloat32, rounded before: with g and t as above
//   a[0] = A[g, t]    a[1] = A[g+8, t]    a[2] = A[g, t+4]    a[3] = A[g+8, t+4]
//   b[0] = B[t, g]    b[1] = B[t+4, g]    d as above
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else  // the host twin, for tests

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  cuda_on_host::Site site = cuda_on_host::Site::here()) {
  const auto half =
      std::is_same_v<T, bfloat16> ? cuda_on_host::Half::bfloat16 : cuda_on_host::Half::float16;
  cuda_on_host::mma_m16n8k16(half, d, a, b, site);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             cuda_on_host::Site site = cuda_on_host::Site::here()) {
  cuda_on_host::mma_m16n8k8_tf32(d, a, b, site);
}
#endif

}  // namespace deepcrf::cuda
