// What the kernels of the gradient of messages are given, on CUDA cores and on the tensor cores.
#pragma once

#include "cuda/message_directions.cuh"
#include "ops/pairwise_messages_block.h"

namespace deepcrf::cuda {

// A and B as matrix products take them.
template <class T>
using BlockElement = std::conditional_t<std::is_same_v<T, bfloat16>, bfloat16, Accumulator<T>>;

// Coefficient: what a node's coefficients are kept in.
template <class T, class Coefficient>
struct BlockTask {
  Direction<T> direction;
  NodeBlock block;
  int num_labels;                   // K
  const Coefficient* coefficients;  // [N, columns]
  int columns;
};

// Writes 16 bytes to global memory by one instruction; of an assignment the compiler may make four.
__device__ inline void store_16_bytes(void* pointer, const uint4& values) {
#ifdef __CUDACC__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(pointer)),
               "r"(values.x), "r"(values.y), "r"(values.z), "r"(values.w)
               : "memory");
#else
  *static_cast<uint4*>(pointer) = values;
#endif
}

}  // namespace deepcrf::cuda
