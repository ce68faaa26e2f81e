// The host side of the CUDA runtime: a small device with the limits of a real one; and names for
// errors.
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "cuda_runtime.h"
#include "state.h"

namespace cuda_on_host {

namespace {
std::map<const void*, std::size_t> shared_limits;
}

// Refuses to lower a limit: between the setting and the launch of one thread, another may set its
// own.
bool allow_shared_bytes(const void* kernel, std::size_t bytes) {
  if (bytes > kMaxSharedBytes || bytes < shared_limits[kernel]) return false;
  shared_limits[kernel] = bytes;
  return true;
}

std::size_t allowed_shared_bytes(const void* kernel) {
  const auto found = shared_limits.find(kernel);
  return found == shared_limits.end() ? kDefaultSharedBytes
                                      : std::max(found->second, kDefaultSharedBytes);
}

cudaError_t check_launch(const void* kernel, const LaunchShape& shape) {
  const Index3& grid = shape.grid;
  const Index3& block = shape.block;
  const unsigned long long threads = 1ull * block.x * block.y * block.z;
  const bool fits = grid.x >= 1 && grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 &&
                    grid.z >= 1 && grid.z <= 65535 && threads >= 1 && threads <= 1024 &&
                    block.z <= 64;
  if (!fits) return cudaErrorInvalidConfiguration;
  return shape.shared_bytes <= allowed_shared_bytes(kernel) ? cudaSuccess : cudaErrorInvalidValue;
}

std::string code_name(const void* address) {
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(&code_name), &info) == 0) return "?";
  const auto offset = static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase);
  // A return address lies behind the call; the byte before it belongs to the call's line.
  std::array<char, 64> number;
  std::snprintf(number.data(), number.size(), "%#lx",
                static_cast<unsigned long>(offset > 0 ? offset - 1 : 0));
  const bool is_kernel = address == machine.kernel;
  if (is_kernel)
    std::snprintf(number.data(), number.size(), "%#lx", static_cast<unsigned long>(offset));
  const std::string command =
      std::string("addr2line -Cfp -e '") + info.dli_fname + "' " + number.data() + " 2>/dev/null";
  std::string text;
  if (FILE* pipe = popen(command.c_str(), "r")) {
    std::array<char, 512> line;
    if (std::fgets(line.data(), line.size(), pipe) != nullptr) text = line.data();
    pclose(pipe);
  }
  text = text.substr(0, std::min(text.find(" (discriminator"), text.find('\n')));
  return text.empty() ? "code at " + std::string(number.data()) : text;
}

}  // namespace cuda_on_host

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
  }
  return "unknown";
}

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
  }
  return "unknown";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

// One multiprocessor: grid-stride loops go round more than once at small sizes.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 1; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(cuda_on_host::kMaxSharedBytes);
      break;
  }
  return cudaSuccess;
}

// How much static shared memory a kernel has is not known here. It waits for former kernels where
// it says so, as if compiled for sm_90.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->sharedSizeBytes = 0;
  attributes->ptxVersion = 90;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const bool allowed =
      value >= 0 && cuda_on_host::allow_shared_bytes(kernel, static_cast<std::size_t>(value));
  return allowed ? cudaSuccess : cudaErrorInvalidValue;
}

// The driver is not there either.
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *entry = nullptr;
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  cuda_on_host::check_global(address, bytes);
  std::memset(address, value, bytes);
  return cudaSuccess;
}
