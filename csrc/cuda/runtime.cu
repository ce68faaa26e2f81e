#include "cuda/runtime.h"

#include "cuda/launch.cuh"

namespace deepcrf::cuda {

int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return version;
}

namespace {

// Whether a device has its context already. Making it current would make one, of some 0.5 GB.
bool has_context(int device) {
  using GetState = int (*)(int device, unsigned int* flags, int* active);
  static const GetState get_state = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &entry, 12000,
                                           cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
#else
    check(cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &entry, cudaEnableDefault, &found),
          "cudaGetDriverEntryPoint");
#endif
    return reinterpret_cast<GetState>(entry);
  }();
  unsigned int flags = 0;
  int active = 0;
  return get_state != nullptr && get_state(device, &flags, &active) == 0 && active != 0;
}

}  // namespace

DeviceGuard::DeviceGuard(int device) : device_(device), former_(current_device()) {
  if (former_ != device_) check(cudaSetDevice(device_), "cudaSetDevice");
}

DeviceGuard::~DeviceGuard() {
  if (former_ != device_ && has_context(former_)) cudaSetDevice(former_);
}

}  // namespace deepcrf::cuda
