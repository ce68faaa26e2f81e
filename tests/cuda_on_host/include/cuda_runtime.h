// The part of the CUDA runtime and device language that the project's kernels use, on the host.
// Threads of a block are fibers (runtime/scheduler.cpp); memory is checked (runtime/memory.cpp).
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_on_host/runtime.h"

// ---- Language ----
// Shared variables are thread-local so that they lie in one known memory segment of the module.
#define __shared__ thread_local
#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define CUDA_ON_HOST_VECTOR(type, name, align2, align4)                       \
  struct alignas(align2) name##2 { type x, y; };                              \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(align4) name##4 { type x, y, z, w; };                        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_ON_HOST_VECTOR(float, float, 8, 16)
CUDA_ON_HOST_VECTOR(int, int, 8, 16)
CUDA_ON_HOST_VECTOR(unsigned, uint, 8, 16)
CUDA_ON_HOST_VECTOR(double, double, 16, 16)
CUDA_ON_HOST_VECTOR(long long, longlong, 16, 16)
CUDA_ON_HOST_VECTOR(short, short, 4, 8)
CUDA_ON_HOST_VECTOR(unsigned short, ushort, 4, 8)
CUDA_ON_HOST_VECTOR(char, char, 2, 4)
CUDA_ON_HOST_VECTOR(unsigned char, uchar, 2, 4)
#undef CUDA_ON_HOST_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

// ---- Barriers, votes, shuffles ----
namespace cuda_on_host {

// A value of any small type as the 64 bits that travel between lanes.
template <class T>
std::uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

enum class Shuffle { index, up, down, exclusive_or };
std::uint64_t shuffle(const char* name, Shuffle kind, unsigned mask, std::uint64_t value,
                      int operand, int width, Site site);
unsigned vote(const char* name, unsigned mask, bool predicate, Site site);
enum class Reduction { add, min, max, bit_and, bit_or, bit_xor };
std::int64_t reduce(const char* name, Reduction kind, unsigned mask, std::int64_t value, Site site);
unsigned match_any(unsigned mask, std::uint64_t value, Site site);

}  // namespace cuda_on_host

inline void __syncthreads(cuda_on_host::Site site = cuda_on_host::Site::here()) {
  cuda_on_host::block_barrier("__syncthreads", 0, site);
}
inline int __syncthreads_count(int predicate,
                               cuda_on_host::Site site = cuda_on_host::Site::here()) {
  return cuda_on_host::block_barrier("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, cuda_on_host::Site site = cuda_on_host::Site::here()) {
  return cuda_on_host::block_barrier("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, cuda_on_host::Site site = cuda_on_host::Site::here()) {
  return cuda_on_host::block_barrier("__syncthreads_and", predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = cuda_on_host::kAllLanes,
                       cuda_on_host::Site site = cuda_on_host::Site::here()) {
  cuda_on_host::warp_barrier(mask, site);
}

#define CUDA_ON_HOST_SHUFFLE(name, kind, Operand)                               \
  template <class T>                                                            \
  T name(unsigned mask, T value, Operand operand, int width = warpSize,         \
         cuda_on_host::Site site = cuda_on_host::Site::here()) {                \
    return cuda_on_host::from_bits<T>(cuda_on_host::shuffle(                    \
        #name, cuda_on_host::Shuffle::kind, mask, cuda_on_host::to_bits(value), \
        static_cast<int>(operand), width, site));                               \
  }
CUDA_ON_HOST_SHUFFLE(__shfl_sync, index, int)
CUDA_ON_HOST_SHUFFLE(__shfl_up_sync, up, unsigned)
CUDA_ON_HOST_SHUFFLE(__shfl_down_sync, down, unsigned)
CUDA_ON_HOST_SHUFFLE(__shfl_xor_sync, exclusive_or, int)
#undef CUDA_ON_HOST_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_on_host::Site site = cuda_on_host::Site::here()) {
  return cuda_on_host::vote("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate,
                      cuda_on_host::Site site = cuda_on_host::Site::here()) {
  return cuda_on_host::vote("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      cuda_on_host::Site site = cuda_on_host::Site::here()) {
  return cuda_on_host::vote("__all_sync", mask, predicate == 0, site) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          cuda_on_host::Site site = cuda_on_host::Site::here()) {
  return cuda_on_host::match_any(mask, cuda_on_host::to_bits(value), site);
}
#define CUDA_ON_HOST_REDUCE(name, kind)                                                    \
  template <class T, class = std::enable_if_t<std::is_integral_v<T> && sizeof(T) == 4>>    \
  T name(unsigned mask, T value, cuda_on_host::Site site = cuda_on_host::Site::here()) {   \
    return static_cast<T>(cuda_on_host::reduce(#name, cuda_on_host::Reduction::kind, mask, \
                                               static_cast<std::int64_t>(value), site));   \
  }
CUDA_ON_HOST_REDUCE(__reduce_add_sync, add)
CUDA_ON_HOST_REDUCE(__reduce_min_sync, min)
CUDA_ON_HOST_REDUCE(__reduce_max_sync, max)
CUDA_ON_HOST_REDUCE(__reduce_and_sync, bit_and)
CUDA_ON_HOST_REDUCE(__reduce_or_sync, bit_or)
CUDA_ON_HOST_REDUCE(__reduce_xor_sync, bit_xor)
#undef CUDA_ON_HOST_REDUCE

// ---- Atomics and fences ----
namespace cuda_on_host {

template <class T, class Update>
__attribute__((no_sanitize("thread"))) T atomic_update(T* address, Update update) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T) != 0) fail("misaligned atomic");
  check_access(address, sizeof(T), Access::atomic);
  T old;
  std::memcpy(&old, address, sizeof(T));
  const T updated = update(old);
  std::memcpy(address, &updated, sizeof(T));
  return old;
}

// Atomics convert their operand to the type of the memory, as overload resolution does in CUDA.
template <class T>
using Operand = std::common_type_t<T>;

}  // namespace cuda_on_host

#define CUDA_ON_HOST_ATOMIC(name, expression)                                              \
  template <class T>                                                                       \
  T name(T* address, cuda_on_host::Operand<T> value) {                                     \
    return cuda_on_host::atomic_update(address,                                            \
                                       [=](T old) { return static_cast<T>(expression); }); \
  }
CUDA_ON_HOST_ATOMIC(atomicAdd, old + value)
CUDA_ON_HOST_ATOMIC(atomicSub, old - value)
CUDA_ON_HOST_ATOMIC(atomicMin, old < value ? old : value)
CUDA_ON_HOST_ATOMIC(atomicMax, old > value ? old : value)
CUDA_ON_HOST_ATOMIC(atomicExch, ((void)old, value))
CUDA_ON_HOST_ATOMIC(atomicAnd, old& value)
CUDA_ON_HOST_ATOMIC(atomicOr, old | value)
CUDA_ON_HOST_ATOMIC(atomicXor, old ^ value)
CUDA_ON_HOST_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef CUDA_ON_HOST_ATOMIC
template <class T>
T atomicCAS(T* address, cuda_on_host::Operand<T> expected, cuda_on_host::Operand<T> value) {
  return cuda_on_host::atomic_update(address, [=](T old) { return old == expected ? value : old; });
}

inline void __threadfence() { cuda_on_host::release_to_other_blocks(); }
inline void __threadfence_block() {}

// ---- Loads and stores with cache hints ----
#define CUDA_ON_HOST_LOAD(name) \
  template <class T>            \
  T name(const T* address) {    \
    return *address;            \
  }
#define CUDA_ON_HOST_STORE(name)                          \
  template <class T>                                      \
  void name(T* address, cuda_on_host::Operand<T> value) { \
    *address = value;                                     \
  }
CUDA_ON_HOST_LOAD(__ldg)
CUDA_ON_HOST_LOAD(__ldca)
CUDA_ON_HOST_LOAD(__ldcg)
CUDA_ON_HOST_LOAD(__ldcs)
CUDA_ON_HOST_LOAD(__ldlu)
CUDA_ON_HOST_STORE(__stcg)
CUDA_ON_HOST_STORE(__stcs)
CUDA_ON_HOST_STORE(__stwb)
#undef CUDA_ON_HOST_LOAD
#undef CUDA_ON_HOST_STORE

// ---- Arithmetic ----
template <class A, class B, class T = std::common_type_t<A, B>>
constexpr std::enable_if_t<std::is_arithmetic_v<T>, T> min(A a, B b) {
  if constexpr (std::is_floating_point_v<T>) return fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B, class T = std::common_type_t<A, B>>
constexpr std::enable_if_t<std::is_arithmetic_v<T>, T> max(A a, B b) {
  if constexpr (std::is_floating_point_v<T>) return fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }

inline int __float_as_int(float x) {
  return cuda_on_host::from_bits<int>(cuda_on_host::to_bits(x));
}
inline unsigned __float_as_uint(float x) {
  return cuda_on_host::from_bits<unsigned>(cuda_on_host::to_bits(x));
}
inline float __int_as_float(int x) {
  return cuda_on_host::from_bits<float>(cuda_on_host::to_bits(x));
}
inline float __uint_as_float(unsigned x) {
  return cuda_on_host::from_bits<float>(cuda_on_host::to_bits(x));
}
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>((static_cast<unsigned long long>(x) * y) >> 32);
}

// ---- Runtime ----
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};
using cudaStream_t = struct CUstream_st*;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum { cudaSharedmemCarveoutMaxShared = 100 };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int ptxVersion;
};
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

const char* cudaGetErrorName(cudaError_t status);
const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0 };
constexpr unsigned long long cudaEnableDefault = 0;
#define CUDART_VERSION 13000
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** entry, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found);
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int block_size,
                                                          size_t shared_bytes) {
  const bool fits = block_size <= 1024 && shared_bytes <= cuda_on_host::kMaxSharedBytes;
  *blocks = fits ? 1 : 0;
  return cudaSuccess;
}

namespace cuda_on_host {
cudaError_t check_launch(const void* kernel, const LaunchShape& shape);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::decay_t<Parameters>...> values;
  };
  static_assert(sizeof(Call) <= cuda_on_host::kMaxParameterBytes);
  Call call = {kernel, {std::forward<Arguments>(arguments)...}};
  const dim3 grid = config->gridDim;
  const dim3 block = config->blockDim;
  const cuda_on_host::LaunchShape shape = {
      {grid.x, grid.y, grid.z},
      {block.x, block.y, block.z},
      config->dynamicSmemBytes,
      config->numAttrs > 0 && config->attrs[0].val.programmaticStreamSerializationAllowed != 0};
  const void* address = reinterpret_cast<const void*>(kernel);
  const cudaError_t status = cuda_on_host::check_launch(address, shape);
  if (status != cudaSuccess) return status;
  const auto entry = [](void* raw) {
    const Call& own = *static_cast<Call*>(raw);
    std::apply(own.kernel, own.values);
  };
  cuda_on_host::run_grid(address, shape, entry, &call, sizeof(call));
  return cudaSuccess;
}
