// Compressed rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace deepcrf::cuda {

// The row of compressed rows that entry `e` lies in.
__device__ inline int64_t row_of(const int64_t* row_offsets,  // [num_rows + 1]
                                 int64_t num_rows, int64_t e) {
  int64_t low = 0;
  int64_t high = num_rows;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (row_offsets[middle] <= e) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace deepcrf::cuda
