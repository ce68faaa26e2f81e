// Factored messages, shared by pairwise_messages and mean_field.
#pragma once

#include "cuda/messages_simt.cuh"
#include "cuda/messages_tensor.cuh"

namespace deepcrf::cuda {

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
