// Tensor-core instructions in software; csrc/cuda/mma.cuh holds the real ones.
#pragma once

#include <cstdint>

#include "cuda_on_host/runtime.h"

namespace cuda_on_host {

enum class Half { bfloat16, float16 };

void mma_m16n8k16(Half type, float (&d)[4], const std::uint32_t (&a)[4],
                  const std::uint32_t (&b)[2], Site site);

// Operands are read as the tensor cores do: without the lower 13 bits of their mantissa.
void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                      Site site);

}  // namespace cuda_on_host
