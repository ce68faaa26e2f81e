// The factored potential: V_pq(k, j) = weight[k, j] . relu(source_p + target_q) + bias[k, j].
#pragma once

#include <cstdint>

#include "core/dtypes.h"

namespace deepcrf {

// How exact products must be, by torch's names: as float32; three products of TensorFloat32 on
// CUDA, of bfloat16 by matrix tiles of a CPU; one. Other kernels of the CPU multiply float32
// whatever it is.
enum class MatmulPrecision { highest, high, medium };

template <class T>
struct FactoredPotential {
  int64_t num_labels;    // K
  int64_t num_features;  // D
  const T* source;       // [N, D]
  const T* target;       // [N, D]
  const T* weight;       // [K, K, D]
  const T* bias;         // [K, K]
};

// The same with the element type known at run time only.
struct AnyFactoredPotential {
  DType dtype;
  int64_t num_labels;    // K
  int64_t num_features;  // D
  const void* source;    // [N, D]
  const void* target;    // [N, D]
  const void* weight;    // [K, K, D]
  const void* bias;      // [K, K]

  template <class T>
  FactoredPotential<T> as() const {
    return {num_labels,
            num_features,
            static_cast<const T*>(source),
            static_cast<const T*>(target),
            static_cast<const T*>(weight),
            static_cast<const T*>(bias)};
  }
};

// Where gradients of a factored potential go, in the accumulator of its dtype; every element is
// written.
struct AnyFactoredGradient {
  void* source;  // [N, D]
  void* target;  // [N, D]
  void* weight;  // [K, K, D]
  void* bias;    // [K, K]
};

}  // namespace deepcrf
