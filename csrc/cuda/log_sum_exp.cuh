// The partition sum of a row of energies, by one warp.
#pragma once

#include "cuda/arithmetic.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

// Of labels with these energies: P(label) = exp(lowest - energy) / sum.
template <class A>
struct Partition {
  A lowest;
  A sum;  // of exp(lowest - energy)

  __device__ A probability(A energy) const { return exponential(lowest - energy) / sum; }
  __device__ A negative_log(A energy) const { return energy - lowest + logarithm(sum); }
};

// energy(i) is that of label i < count. All lanes must call; energies may be read twice.
template <class A, class Energy>
__device__ Partition<A> warp_partition(int count, const Energy& energy) {
  A lowest = INFINITY;
  for (int i = lane_index(); i < count; i += kWarpSize) {
    const A value = energy(i);
    lowest = value < lowest ? value : lowest;
  }
  lowest = warp_min(lowest);
  A sum = 0;
  for (int i = lane_index(); i < count; i += kWarpSize) sum += exponential(lowest - energy(i));
  return {lowest, warp_sum(sum)};
}

}  // namespace deepcrf::cuda
