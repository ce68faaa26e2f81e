#include "cuda/runtime.h"

#include "cuda/launch.cuh"

namespace deepcrf::cuda {

int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return version;
}

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&former_), "cudaGetDevice");
  check(cudaSetDevice(device), "cudaSetDevice");
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(former_); }

}  // namespace deepcrf::cuda
