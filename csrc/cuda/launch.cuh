// The one place for grid sizes and for launches. Kernels are grid-stride: a capped grid loses
// nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "core/checks.h"

namespace deepcrf::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw BackendError(concatenate("CUDA error in ", what, ": ", cudaGetErrorName(status), ", ",
                                   cudaGetErrorString(status)));
  }
}

// Blocks for a grid-stride kernel over `items` items with `items_per_block` a pass: enough for all,
// at most what the device holds at once, at least one.
inline unsigned int grid_size(int64_t items, int64_t items_per_block) {
  constexpr int64_t kBlocksPerMultiprocessor = 32;
  int device = 0;
  int multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  const int64_t wanted = (items + items_per_block - 1) / items_per_block;
  const int64_t most = multiprocessors * kBlocksPerMultiprocessor;
  const int64_t blocks = wanted < most ? wanted : most;
  return static_cast<unsigned int>(blocks > 0 ? blocks : 1);
}

// Shared memory that a block of the current device may ask for.
inline int64_t most_shared_bytes() {
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return bytes;
}

// Launches and checks: launch("name", kernel, grid, block, shared_bytes, stream, arguments...).
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, void* stream, Arguments&&... arguments) {
  constexpr size_t kSharedBytesOfAnyKernel = 48 * 1024;
  if (shared_bytes > kSharedBytesOfAnyKernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];

// The block's dynamic shared memory, of the size given to launch().
template <class T>
__device__ T* dynamic_shared() {
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

}  // namespace deepcrf::cuda
