// The partition sum of a row of energies, by one warp.
#pragma once

#include "cuda/arithmetic.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

// Of labels with these energies: P(label) = exp(lowest - energy) / sum.
template <class A>
struct Partition {
  A lowest;
  A sum;      // of exp(lowest - energy)
  A inverse;  // 1 / sum

  __device__ A probability(A energy) const { return exponential(lowest - energy) * inverse; }
  __device__ A negative_log(A energy) const { return energy - lowest + logarithm(sum); }
};

__device__ inline float lesser(float a, float b) { return fminf(a, b); }
__device__ inline double lesser(double a, double b) { return fmin(a, b); }

// load(first, energies) sets an array of those of labels from `first` on:
// kCount of them, or one. All lanes must call; energies are loaded twice.
template <int kCount, class A, class Load>
__device__ Partition<A> warp_partition(int count, const Load& load) {
  static_assert(kCount <= kWarpSize);
  const int whole = count - count % kCount;
  const int rest = whole + lane_index();
  A energies[kCount];
  A last[1];
  A lowest = INFINITY;
  for (int first = lane_index() * kCount; first < whole; first += kWarpSize * kCount) {
    load(first, energies);
#pragma unroll
    for (const A energy : energies) lowest = lesser(energy, lowest);
  }
  if (rest < count) {
    load(rest, last);
    lowest = lesser(last[0], lowest);
  }
  lowest = warp_min(lowest);
  A sum = 0;
  for (int first = lane_index() * kCount; first < whole; first += kWarpSize * kCount) {
    load(first, energies);
#pragma unroll
    for (const A energy : energies) sum += exponential(lowest - energy);
  }
  if (rest < count) {
    load(rest, last);
    sum += exponential(lowest - last[0]);
  }
  sum = warp_sum(sum);
  return {lowest, sum, 1 / sum};
}

// The same with energy(i), that of label i.
template <class A, class Energy>
__device__ Partition<A> warp_partition(int count, const Energy& energy) {
  return warp_partition<1, A>(count, [&](int i, A(&energies)[1]) { energies[0] = energy(i); });
}

}  // namespace deepcrf::cuda
