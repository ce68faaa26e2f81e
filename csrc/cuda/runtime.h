// The CUDA runtime as the bindings see it, free of CUDA headers.
#pragma once

namespace deepcrf::cuda {

// Version of the linked runtime: 1000 * major + 10 * minor.
int runtime_version();

// Makes a device current for this thread, and at the end the former one again if it is in use.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int former_;
};

}  // namespace deepcrf::cuda
