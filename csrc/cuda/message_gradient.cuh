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

}  // namespace deepcrf::cuda
