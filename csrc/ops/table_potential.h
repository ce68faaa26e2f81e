// The table potential: the energies of every edge, materialised.
#pragma once

#include <cstdint>

#include "core/dtypes.h"

namespace deepcrf {

struct AnyTablePotential {
  DType dtype;
  int64_t num_labels;    // K
  const void* energies;  // [E, K, K]
};

}  // namespace deepcrf
