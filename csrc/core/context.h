// Where and with what a launcher runs.
#pragma once

namespace deepcrf {

struct ExecutionContext {
  int num_threads;  // OpenMP threads of CPU kernels
  void* stream;     // cudaStream_t of CUDA kernels
};

}  // namespace deepcrf
