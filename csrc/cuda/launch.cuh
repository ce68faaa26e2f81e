// The one place for grid sizes and for launches. Kernels are grid-stride: a capped grid loses
// nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "core/checks.h"

namespace deepcrf::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw BackendError(concatenate("CUDA error in ", what, ": ", cudaGetErrorName(status), ", ",
                                   cudaGetErrorString(status)));
  }
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

// What a device can hold, asked for once.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // that a block may ask for, static and dynamic together
};

inline DeviceLimits device_limits(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  DeviceLimits limits = {};
  check(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  check(
      cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
      "cudaDeviceGetAttribute");
  known[device] = limits;
  return limits;
}

// Blocks for a grid-stride kernel over `items` items with `items_per_block` a pass: enough for all,
// at most what the device holds at once, at least one.
inline unsigned int grid_size(int64_t items, int64_t items_per_block) {
  constexpr int64_t kBlocksPerMultiprocessor = 32;
  const int64_t wanted = (items + items_per_block - 1) / items_per_block;
  const int64_t most = device_limits(current_device()).multiprocessors * kBlocksPerMultiprocessor;
  const int64_t blocks = wanted < most ? wanted : most;
  return static_cast<unsigned int>(blocks > 0 ? blocks : 1);
}

// Lets a kernel have all the dynamic shared memory of the current device, and has it cut from the
// L1 cache as if several blocks had theirs at once. Once a kernel and device, and never less: the
// setting is the process's, and a launch of another thread may stand between a setting of its own
// and its launch.
inline void allow_shared_memory(const char* name, const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device}) > 0) return;
  cudaFuncAttributes attributes = {};
  check(cudaFuncGetAttributes(&attributes, kernel), name);
  const int most =
      device_limits(device).shared_bytes - static_cast<int>(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), name);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        name);
  allowed.insert({kernel, device});
}

template <class... Parameters, class... Arguments>
void launch_config(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   size_t shared_bytes, void* stream, bool early, Arguments&&... arguments) {
  if (shared_bytes > 0) allow_shared_memory(name, reinterpret_cast<const void*>(kernel));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

// Whether a kernel waits at wait_for_former_kernels(): whether its code was compiled for sm_90 or
// later, also where a later device translates it. Asked once a kernel and device.
inline bool waits_for_former_kernels(const char* name, const void* kernel) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, bool> known;
  const std::pair<const void*, int> key = {kernel, current_device()};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  cudaFuncAttributes attributes = {};
  check(cudaFuncGetAttributes(&attributes, kernel), name);
  return known[key] = attributes.ptxVersion >= 90;
}

// Launches and checks: launch("name", kernel, grid, block, shared_bytes, stream, arguments...).
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, void* stream, Arguments&&... arguments) {
  launch_config(name, kernel, grid, block, shared_bytes, stream, false,
                std::forward<Arguments>(arguments)...);
}

// The same for a kernel that may be launched before the kernels before it on the stream have ended
// (programmatic dependent launch), where the device can: it must begin with
// wait_for_former_kernels().
template <class... Parameters, class... Arguments>
void launch_early(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                  size_t shared_bytes, void* stream, Arguments&&... arguments) {
  launch_config(name, kernel, grid, block, shared_bytes, stream,
                waits_for_former_kernels(name, reinterpret_cast<const void*>(kernel)),
                std::forward<Arguments>(arguments)...);
}

// Waits until all kernels before this one on the stream have ended and what they wrote can be read;
// then lets the next be launched, which waits in turn.
__device__ inline void wait_for_former_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#elif !defined(__CUDACC__)
  cuda_on_host::wait_for_former_kernels();
#endif
}

extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];

// The block's dynamic shared memory, of the size given to launch().
template <class T>
__device__ T* dynamic_shared() {
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

}  // namespace deepcrf::cuda
