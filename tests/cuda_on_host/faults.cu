// Planted faults, each with its corrected twin: what the shim must catch, and what it must let
// pass.
#include <cstring>

#include "cuda/async_copy.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "cuda/tf32.cuh"
#include "kernels.h"

namespace deepcrf::cuda {

namespace {

constexpr int kThreads = 128;

// Every twin reverses its block's 128 values or copies them, by another means.
template <bool kCorrected>
__global__ void missing_barrier(const float* input, float* output, int) {
  __shared__ float values[kThreads];
  const int base = blockIdx.x * kThreads;
  values[threadIdx.x] = input[base + threadIdx.x];
  if (kCorrected) __syncthreads();
  output[base + threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// The second round overwrites what the first is still reading.
template <bool kCorrected>
__global__ void missing_second_barrier(const float* input, float* output, int) {
  __shared__ float values[kThreads];
  const int base = blockIdx.x * kThreads;
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = input[base + threadIdx.x];
    __syncthreads();
    output[base + threadIdx.x] = values[kThreads - 1 - threadIdx.x];
    if (kCorrected) __syncthreads();
  }
}

template <bool kCorrected>
__global__ void missing_warp_barrier(const float* input, float* output, int) {
  __shared__ float values[kThreads];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = input[i];
  if (kCorrected) __syncwarp();
  output[i] = values[threadIdx.x ^ 31];
}

template <bool kCorrected>
__global__ void race_between_blocks(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  output[kCorrected ? i : threadIdx.x] = input[i];
}

template <bool kCorrected>
__global__ void wrong_index(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  output[i] = input[kCorrected ? i : i + 1];
}

template <bool kCorrected>
__global__ void wrong_store(const float* input, float* output, int count) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  output[kCorrected ? i : i - 1 + (i == 1 ? count : 0)] = input[i];
}

template <bool kCorrected>
__global__ void wrong_shared_index(const float* input, float* output, int) {
  __shared__ float values[kThreads];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x + (kCorrected ? 0 : 1)] = input[i];
  output[i] = values[threadIdx.x + (kCorrected ? 0 : 1)];
}

template <bool kCorrected>
__global__ void dynamic_shared_too_small(const float* input, float* output, int) {
  float* values = dynamic_shared<float>();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x + (kCorrected ? 0 : 1)] = input[i];
  output[i] = values[threadIdx.x + (kCorrected ? 0 : 1)];
}

template <bool kCorrected>
__global__ void early_exit_before_barrier(const float* input, float* output, int count) {
  __shared__ float values[kThreads];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (!kCorrected && i + 3 >= count) return;
  values[threadIdx.x] = input[i];
  __syncthreads();
  output[i] = values[threadIdx.x];
}

template <bool kCorrected>
__global__ void divergent_barrier(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (kCorrected || threadIdx.x < 64) {
    __syncthreads();
  } else {
    output[i] = 0.0f;
    __syncthreads();
  }
  output[i] = input[i];
}

template <bool kCorrected>
__global__ void unwritten_shared(const float* input, float* output, int) {
  __shared__ float values[kThreads];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (kCorrected || threadIdx.x != 77) values[threadIdx.x] = input[i];
  __syncthreads();
  output[i] = values[threadIdx.x];
}

template <bool kCorrected>
__global__ void misaligned_vector(const float* input, float* output, int) {
  if (threadIdx.x >= kThreads / 4 - 1) return;
  const int i = blockIdx.x * kThreads + threadIdx.x * 4;
  const float4 four = *reinterpret_cast<const float4*>(input + i + (kCorrected ? 0 : 1));
  *reinterpret_cast<float4*>(output + i) = four;
}

template <bool kCorrected>
__global__ void wrong_shuffle_mask(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  float value = input[i];
  if (threadIdx.x % 32 < 16) {
    value = __shfl_xor_sync(kCorrected ? 0x0000ffffu : 0xffffffffu, value, 1);
  }
  output[i] = value;
}

template <bool kCorrected>
__global__ void mask_without_caller(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  output[i] = __shfl_sync(kCorrected ? 0xffffffffu : 0x7fffffffu, input[i], 0);
}

template <bool kCorrected>
__global__ void disagreeing_masks(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffffffffu;
  output[i] = __shfl_xor_sync(kCorrected ? 0xffffffffu : half, input[i], 1);
}

template <bool kCorrected>
__global__ void missing_copy_wait(const float* input, float* output, int) {
  alignas(16) __shared__ float values[kThreads];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (threadIdx.x % 4 == 0) cp_async_16(values + threadIdx.x, input + i);
  cp_async_commit();
  if (kCorrected) cp_async_wait<0>();
  __syncthreads();
  output[i] = values[kThreads - 1 - threadIdx.x];
}

template <bool kCorrected>
__global__ void overflowing_index(const float* input, float* output, int count) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int large = count << 12;
  if (kCorrected) {
    output[i] = input[static_cast<int64_t>(large) * large % count + i];
  } else {
    output[i] = input[large * large % count + i];
  }
}

// A shift by 32 is 0 on a device, and none on a processor.
template <bool kCorrected>
__global__ void shift_by_all_bits(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const unsigned lanes_up_to = threadIdx.x % 32 + 1;
  const unsigned mask = kCorrected && lanes_up_to == 32 ? 0u : 1u << lanes_up_to;
  output[i] = input[i] + (mask == 0 ? 1.0f : 2.0f);
}

// A device takes the nearest integer there is, and 0 of what is no number.
template <bool kCorrected>
__global__ void integer_too_small(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const float value = input[i] * (kCorrected ? 1.0f : INFINITY);
  output[i] = static_cast<float>(static_cast<int>(value)) + 0.5f;
}

// Not a race, as the additions are atomic; but the sum depends on their order.
template <bool kCorrected>
__global__ void order_of_atomics(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  atomicAdd(output + (kCorrected ? i : 0), input[i]);
}

// Launched early: what it reads may not have been written yet.
template <bool kCorrected>
__global__ void missing_wait_for_former_kernels(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (kCorrected) wait_for_former_kernels();
  output[i] = input[i];
}

// Launched early: the kernel behind it would come too early for the one before it.
template <bool kCorrected>
__global__ void early_exit_before_the_wait(const float* input, float* output, int count) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (!kCorrected && i + 3 >= count) return;
  wait_for_former_kernels();
  output[i] = input[i];
}

// The tensor cores take what the rounding leaves, and ignore the bits below.
template <bool kCorrected>
__global__ void unrounded_operand(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t bits = __float_as_uint(kCorrected ? round_to_tf32(input[i]) : input[i]);
  const uint32_t a[4] = {bits, bits, bits, bits};
  const uint32_t b[2] = {bits, bits};
  float sums[4] = {};
  mma_m16n8k8_tf32(sums, a, b);
  output[i] = sums[0];
}

template <bool kCorrected>
__global__ void product_without_a_lane(const float* input, float* output, int) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t bits = __float_as_uint(input[i]) & 0xffff0000u;
  const uint32_t a[4] = {bits, bits, bits, bits};
  const uint32_t b[2] = {bits, bits};
  float sums[4] = {};
  if (kCorrected || threadIdx.x % 32 != 31) mma_m16n8k16<bfloat16>(sums, a, b);
  output[i] = sums[0];
}

using Kernel = void (*)(const float*, float*, int);
struct Fault {
  const char* name;
  Kernel faulty;
  Kernel corrected;
  size_t shared_bytes;
  bool early = false;
};

#define FAULT(name, ...) {#name, name<false>, name<true>, __VA_ARGS__}
const Fault kFaults[] = {
    FAULT(missing_barrier, 0),
    FAULT(missing_second_barrier, 0),
    FAULT(missing_warp_barrier, 0),
    FAULT(race_between_blocks, 0),
    FAULT(wrong_index, 0),
    FAULT(wrong_store, 0),
    FAULT(wrong_shared_index, 0),
    FAULT(dynamic_shared_too_small, kThreads * sizeof(float)),
    FAULT(early_exit_before_barrier, 0),
    FAULT(divergent_barrier, 0),
    FAULT(unwritten_shared, 0),
    FAULT(misaligned_vector, 0),
    FAULT(wrong_shuffle_mask, 0),
    FAULT(mask_without_caller, 0),
    FAULT(disagreeing_masks, 0),
    FAULT(missing_copy_wait, 0),
    FAULT(overflowing_index, 0),
    FAULT(shift_by_all_bits, 0),
    FAULT(integer_too_small, 0),
    FAULT(order_of_atomics, 0),
    FAULT(missing_wait_for_former_kernels, 0, true),
    FAULT(early_exit_before_the_wait, 0, true),
    FAULT(unrounded_operand, 0),
    FAULT(product_without_a_lane, 0),
};
#undef FAULT

}  // namespace

bool run_fault(const char* name, bool corrected, const float* input, float* output, int count) {
  for (const Fault& fault : kFaults) {
    if (std::strcmp(fault.name, name) != 0) continue;
    const auto kernel = corrected ? fault.corrected : fault.faulty;
    const unsigned blocks = static_cast<unsigned>(count / kThreads);
    if (fault.early) {
      launch_early(name, kernel, blocks, kThreads, fault.shared_bytes, nullptr, input, output,
                   count);
    } else {
      launch(name, kernel, blocks, kThreads, fault.shared_bytes, nullptr, input, output, count);
    }
    return true;
  }
  return false;
}

}  // namespace deepcrf::cuda
