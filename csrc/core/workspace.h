// Scratch memory of CUDA kernels, allocated by Python and cut up here. The same layout code runs
// twice: once over nothing, to learn how many bytes to ask for, and once over the memory itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/checks.h"

namespace deepcrf {

class Workspace {
 public:
  // Measures only: take() returns null.
  Workspace() = default;

  Workspace(void* memory, int64_t size)
      : measures_(false), memory_(static_cast<char*>(memory)), size_(size) {
    DEEPCRF_CHECK(reinterpret_cast<uintptr_t>(memory) % kAlignment == 0,
                  "workspace: got another alignment, must be aligned to ", kAlignment, " bytes");
  }

  // The next array of `count` elements, aligned for any vector access.
  template <class T>
  T* take(int64_t count) {
    const int64_t begin = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    if (measures_) return nullptr;
    DEEPCRF_CHECK(used_ <= size_, "workspace: got ", size_, " bytes, must be at least ", used_);
    return reinterpret_cast<T*>(memory_ + begin);
  }

  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 64;  // of every torch allocation

  bool measures_ = true;
  char* memory_ = nullptr;
  int64_t size_ = 0;
  int64_t used_ = 0;
};

}  // namespace deepcrf
