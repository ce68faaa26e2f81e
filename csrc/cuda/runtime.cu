#include "cuda/runtime.h"

#include "cuda/launch.cuh"

namespace deepcrf::cuda {

int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return version;
}

DeviceGuard::DeviceGuard(int device) : device_(device) {
  check(cudaGetDevice(&former_), "cudaGetDevice");
  if (former_ != device_) check(cudaSetDevice(device_), "cudaSetDevice");
}

DeviceGuard::~DeviceGuard() {
  if (former_ != device_) cudaSetDevice(former_);
}

}  // namespace deepcrf::cuda
