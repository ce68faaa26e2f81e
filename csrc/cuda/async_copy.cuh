// Asynchronous copies from global to shared memory: thin names for the PTX of sm_80 and later.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "cuda_on_host/runtime.h"
#endif

namespace deepcrf::cuda {

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts copying 16 bytes from global to shared memory, both 16-byte aligned; zeros where not
// `valid` (`global` is then not read, but must be a pointer into the tensor).
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}
// Closes this thread's current group of copies.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most `kGroupsLeft` of this thread's groups are in flight. Other threads see the
// copies after a barrier that follows.
template <int kGroupsLeft>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsLeft) : "memory");
}

#else  // the host twin, for tests

inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  cuda_on_host::async_copy(shared, global, 16, valid ? 16 : 0);
}
inline void cp_async_commit() { cuda_on_host::async_commit(); }
template <int kGroupsLeft>
void cp_async_wait() {
  cuda_on_host::async_wait(kGroupsLeft);
}

#endif

}  // namespace deepcrf::cuda
