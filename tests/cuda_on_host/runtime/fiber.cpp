#include "fiber.h"

#include <sys/mman.h>

#include <new>

namespace cuda_on_host {
std::uintptr_t Fiber::create_pool() {
  void* pool = mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pool == MAP_FAILED) throw std::bad_alloc();
  const auto base = reinterpret_cast<std::uintptr_t>(pool);
  for (unsigned slot = 0; slot < kMaxFibers; ++slot) {
    mprotect(reinterpret_cast<void*>(base + slot * kSlotBytes), kGuardBytes, PROT_NONE);
  }
  return base;
}

const std::uintptr_t Fiber::pool_ = Fiber::create_pool();

#if defined(__x86_64__)

// Saves the callee-saved registers and the stack pointer, and continues where `next` was saved.
extern "C" void cuda_on_host_switch(void** save, void* next);
// First frame of a fiber: the body is in r12, its argument in r13.
extern "C" void cuda_on_host_start();
asm(R"(
.text
.hidden cuda_on_host_switch
.globl cuda_on_host_switch
.type cuda_on_host_switch, @function
cuda_on_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_on_host_switch, .-cuda_on_host_switch
.hidden cuda_on_host_start
.globl cuda_on_host_start
.type cuda_on_host_start, @function
cuda_on_host_start:
    movq %r13, %rdi
    call *%r12
    ud2
.size cuda_on_host_start, .-cuda_on_host_start
)");

void Fiber::prepare(unsigned slot, Body body, void* argument) {
  auto** top = reinterpret_cast<void**>(stack_bottom(slot) + kStackBytes - 64);
  *--top = reinterpret_cast<void*>(&cuda_on_host_start);
  *--top = nullptr;                        // rbp
  *--top = nullptr;                        // rbx
  *--top = reinterpret_cast<void*>(body);  // r12
  *--top = argument;                       // r13
  *--top = nullptr;                        // r14
  *--top = nullptr;                        // r15
  context_ = top;
}

void Fiber::resume() { cuda_on_host_switch(&caller_, context_); }
void Fiber::suspend() { cuda_on_host_switch(&context_, caller_); }

#else

namespace {
void start(unsigned body_high, unsigned body_low, unsigned argument_high, unsigned argument_low) {
  const auto join = [](unsigned high, unsigned low) {
    return static_cast<std::uintptr_t>(high) << 32 | low;
  };
  reinterpret_cast<Fiber::Body>(join(body_high, body_low))(
      reinterpret_cast<void*>(join(argument_high, argument_low)));
}
}  // namespace

void Fiber::prepare(unsigned slot, Body body, void* argument) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = reinterpret_cast<void*>(stack_bottom(slot));
  context_.uc_stack.ss_size = kStackBytes;
  const auto b = reinterpret_cast<std::uintptr_t>(body);
  const auto a = reinterpret_cast<std::uintptr_t>(argument);
  makecontext(&context_, reinterpret_cast<void (*)()>(&start), 4, static_cast<unsigned>(b >> 32),
              static_cast<unsigned>(b), static_cast<unsigned>(a >> 32), static_cast<unsigned>(a));
}

void Fiber::resume() { swapcontext(&caller_, &context_); }
void Fiber::suspend() { swapcontext(&context_, &caller_); }

#endif

}  // namespace cuda_on_host
