// Stackful fibers: a pool of guarded stacks and a switch between them.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_on_host {

class Fiber {
 public:
  using Body = void (*)(void* argument);
  static constexpr std::size_t kStackBytes = 128 * 1024;
  static constexpr unsigned kMaxFibers = 1024;

  // Prepares fiber `slot` of the pool to run `body` (which must never return) at its first resume.
  void prepare(unsigned slot, Body body, void* argument);

  // Runs this fiber until it calls suspend().
  void resume();

  // Back to the caller of resume().
  void suspend();

  // Whether an address lies in the stack pool.
  static bool on_stack(std::uintptr_t address) { return address - pool_ < kPoolBytes; }

 private:
  static constexpr std::size_t kGuardBytes = 64 * 1024;
  static constexpr std::size_t kSlotBytes = kStackBytes + kGuardBytes;
  static constexpr std::size_t kPoolBytes = kSlotBytes * kMaxFibers;
  static std::uintptr_t create_pool();
  static const std::uintptr_t pool_;

  static std::uintptr_t stack_bottom(unsigned slot) {
    return pool_ + slot * kSlotBytes + kGuardBytes;
  }

#if defined(__x86_64__)
  void* context_ = nullptr;
  void* caller_ = nullptr;
#else
  ucontext_t context_{};
  ucontext_t caller_{};
#endif
};

}  // namespace cuda_on_host
