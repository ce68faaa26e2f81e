// Sums of what several blocks contribute, in a fixed order.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/numeric.cuh"

namespace deepcrf::cuda {

template <class A>
__global__ void sum_parts_kernel(const A* parts,  // [num_parts, count]
                                 int num_parts, int64_t count,
                                 A* sums) {  // [count]
  for (int64_t i = first_thread(); i < count; i += num_threads()) {
    A sum = 0;
    for (int part = 0; part < num_parts; ++part) sum += parts[part * count + i];
    sums[i] = sum;
  }
}

template <class A>
void sum_parts(const A* parts,  // [num_parts, count]
               int num_parts, int64_t count,
               A* sums,  // [count]
               void* stream) {
  launch("sum_parts", sum_parts_kernel<A>, grid_size(count, kThreadsPerBlock), kThreadsPerBlock, 0,
         stream, parts, num_parts, count, sums);
}

}  // namespace deepcrf::cuda
