// What the tests tell the runtime, as C functions that every module built over the shim exports.
#include <string>
#include <vector>

#include "cuda_on_host/runtime.h"

#define CUDA_ON_HOST_EXPORT extern "C" __attribute__((visibility("default")))

// The memory that kernels may touch from now on.
CUDA_ON_HOST_EXPORT void cuda_on_host_set_global_memory(const std::uint64_t* addresses,  // [count]
                                                        const std::uint64_t* bytes,      // [count]
                                                        const char* const* labels,       // [count]
                                                        std::uint64_t count) {
  std::vector<cuda_on_host::Area> areas;
  for (std::uint64_t i = 0; i < count; ++i) areas.push_back({addresses[i], bytes[i], labels[i]});
  cuda_on_host::set_global_memory(areas);
}

// The order of blocks, warps and lanes between barriers: 0 forward, 1 reverse, 2 shuffled by
// `seed`.
CUDA_ON_HOST_EXPORT void cuda_on_host_set_order(int order, std::uint64_t seed) {
  cuda_on_host::set_order(static_cast<cuda_on_host::Order>(order), seed);
}
