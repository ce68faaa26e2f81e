// Sums over the splits of a sum (split-K), in a fixed order.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

template <class A>
__global__ void sum_splits_kernel(const A* splits,  // [num_splits, count]
                                  int num_splits, int64_t count,
                                  A* sums) {  // [count]
  for (int64_t i = first_thread(); i < count; i += num_threads()) {
    A sum = 0;
    for (int split = 0; split < num_splits; ++split) sum += splits[split * count + i];
    sums[i] = sum;
  }
}

template <class A>
void sum_splits(const A* splits,  // [num_splits, count]
                int num_splits, int64_t count,
                A* sums,  // [count]
                void* stream) {
  launch("sum_splits", sum_splits_kernel<A>, grid_size(count, kThreadsPerBlock), kThreadsPerBlock,
         0, stream, splits, num_splits, count, sums);
}

}  // namespace deepcrf::cuda
