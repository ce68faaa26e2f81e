// Factored messages, shared by pairwise_messages and mean_field.
#pragma once

#include "cuda/messages_simt.cuh"
#include "cuda/messages_tensor.cuh"

namespace deepcrf::cuda {

// As dispatch_floating, with tf32 for float32 where its products may be rounded to it.
template <class Function>
void dispatch_messages(DType dtype, bool allow_tf32, const char* name, Function&& function) {
  if (dtype == DType::float32 && allow_tf32) return function(tf32{});
  dispatch_floating(dtype, name, function);
}

// CoefficientLayout and MessageBlock are those of either kind of kernel.
template <class T>
void launch_messages(const MessageSplits<T>& splits, int64_t num_nodes, int64_t num_labels,
                     const typename CoefficientLayout<T>::Element* coefficients,  // [N, columns]
                     Accumulator<T>* messages,                                    // [splits, N, K]
                     void* stream) {
  if constexpr (kOnTensorCores<T>) {
    launch_tensor_messages(splits, num_nodes, num_labels, coefficients, messages, stream);
  } else {
    launch_simt_messages(splits, num_nodes, num_labels, coefficients, messages, stream);
  }
}

}  // namespace deepcrf::cuda
