#include "cuda/runtime.h"

#include "cuda/launch.cuh"

namespace deepcrf::cuda {

int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return version;
}

namespace {

// Whether a device has its context already, or nobody can tell. Making it current would make one,
// of some 0.5 GB.
bool may_have_context(int device) {
  using GetState = int (*)(int device, unsigned int* flags, int* active);
  static const GetState get_state = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t status = cudaGetDriverEntryPointByVersion(
        "cuDevicePrimaryCtxGetState", &entry, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t status =
        cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &entry, cudaEnableDefault, &found);
#endif
    return status == cudaSuccess ? reinterpret_cast<GetState>(entry) : nullptr;
  }();
  unsigned int flags = 0;
  int active = 0;
  return get_state == nullptr || get_state(device, &flags, &active) != 0 || active != 0;
}

}  // namespace

DeviceGuard::DeviceGuard(int device) : device_(device), former_(current_device()) {
  if (former_ != device_) check(cudaSetDevice(device_), "cudaSetDevice");
}

DeviceGuard::~DeviceGuard() {
  if (former_ != device_ && may_have_context(former_)) cudaSetDevice(former_);
}

}  // namespace deepcrf::cuda
