// Where and with what a launcher runs.
#pragma once

#include <cstdint>

namespace deepcrf {

struct ExecutionContext {
  int num_threads;          // OpenMP threads of CPU kernels
  void* stream;             // cudaStream_t of CUDA kernels
  void* workspace;          // [workspace_bytes], scratch memory of CUDA kernels, or null
  int64_t workspace_bytes;  // at least what <operator>_workspace() said
};

}  // namespace deepcrf
