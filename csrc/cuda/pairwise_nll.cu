#include "ops/pairwise_nll.h"

#include <algorithm>

#include "core/workspace.h"
#include "cuda/edge_losses.cuh"

namespace deepcrf::cuda {

namespace {

struct LossSums {
  int count;       // of parts, one a block
  double* sums;    // [count]
  int64_t* valid;  // [count]

  LossSums(Workspace& workspace, int64_t num_edges)
      : count(static_cast<int>(
            std::clamp<int64_t>(ceil_div<int64_t>(num_edges, kThreadsPerBlock), 1, 512))),
        sums(workspace.take<double>(count)),
        valid(workspace.take<int64_t>(count)) {}
};

// The sums of `sum` and `valid` over the block, in a fixed order, to thread 0.
__device__ void block_sum(double& sum, int64_t& valid) {
  __shared__ double sums[kWarpsPerBlock];
  __shared__ int64_t counts[kWarpsPerBlock];
  sum = warp_sum(sum);
  valid = warp_sum(valid);
  if (lane_index() == 0) {
    sums[threadIdx.x / kWarpSize] = sum;
    counts[threadIdx.x / kWarpSize] = valid;
  }
  __syncthreads();
  for (int warp = 1; threadIdx.x == 0 && warp < kWarpsPerBlock; ++warp) {
    sum += sums[warp];
    valid += counts[warp];
  }
}

// Sums of losses and numbers of valid edges, a part each block.
template <class A>
__global__ void partial_reduction_kernel(GraphView graph, EdgeLabels labels,
                                         const A* losses,  // [E]
                                         LossSums parts) {
  wait_for_former_kernels();
  double sum = 0;
  int64_t valid = 0;
  for (int64_t e = first_thread(); e < graph.num_edges; e += num_threads()) {
    sum += losses[e];
    valid += labels.labels[graph.sources[e]] != labels.ignore_index &&
             labels.labels[graph.targets[e]] != labels.ignore_index;
  }
  block_sum(sum, valid);
  if (threadIdx.x == 0) {
    parts.sums[blockIdx.x] = sum;
    parts.valid[blockIdx.x] = valid;
  }
}

// One block.
template <class A>
__global__ void final_reduction_kernel(LossSums parts, bool mean, A* value, A* factor) {
  wait_for_former_kernels();
  double sum = 0;
  int64_t valid = 0;
  for (int i = threadIdx.x; i < parts.count; i += kThreadsPerBlock) {
    sum += parts.sums[i];
    valid += parts.valid[i];
  }
  block_sum(sum, valid);
  if (threadIdx.x == 0) {
    const double count = mean && valid > 0 ? static_cast<double>(valid) : 1;
    *value = static_cast<A>(sum / count);
    *factor = static_cast<A>(1 / count);
  }
}

// to = from * first * second, of all arrays.
template <class T>
__global__ void scale_kernel(const __grid_constant__ ScaledArrays arrays,
                             const Accumulator<T>* first,     // []
                             const Accumulator<T>* second) {  // []
  wait_for_former_kernels();
  const Accumulator<T> factor = *first * *second;
  for (int array = 0; array < arrays.count; ++array) {
    const ScaledArray& own = arrays.arrays[array];
    const auto* from = static_cast<const Accumulator<T>*>(own.from);
    auto* to = static_cast<T*>(own.to);
    for (int64_t i = first_thread(); i < own.size; i += num_threads()) {
      to[i] = narrowed<T>(from[i] * factor);
    }
  }
}

}  // namespace

int64_t reduce_losses_workspace(int64_t num_edges) {
  Workspace workspace;
  const LossSums parts(workspace, num_edges);
  return workspace.used();
}

void reduce_losses(const GraphView& graph, const EdgeLabels& labels, DType dtype,
                   const void* losses, bool mean, void* value, void* factor,
                   const ExecutionContext& ctx) {
  dispatch_native_floating(dtype, "losses", [&](auto tag) {
    using A = decltype(tag);
    Workspace workspace(ctx.workspace, ctx.workspace_bytes);
    const LossSums parts(workspace, graph.num_edges);
    launch_early("partial_reduction", partial_reduction_kernel<A>, parts.count, kThreadsPerBlock, 0,
                 ctx.stream, graph, labels, static_cast<const A*>(losses), parts);
    launch_early("final_reduction", final_reduction_kernel<A>, 1, kThreadsPerBlock, 0, ctx.stream,
                 parts, mean, static_cast<A*>(value), static_cast<A*>(factor));
  });
}

void pairwise_nll_table(const GraphView& graph, const AnyTablePotential& potential,
                        const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    launch_losses<decltype(tag)>(graph, labels, {0, graph.num_edges}, potential.num_labels,
                                 potential.num_labels * potential.num_labels, potential.energies,
                                 nullptr, losses, nullptr, ctx);
  });
}

void pairwise_nll_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                 const EdgeLabels& labels, const void* edge_weight, void* losses,
                                 void* grad_energies, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    launch_losses<decltype(tag)>(graph, labels, {0, graph.num_edges}, potential.num_labels,
                                 potential.num_labels * potential.num_labels, potential.energies,
                                 edge_weight, losses, grad_energies, ctx);
  });
}

void scale_arrays(const ScaledArrays& arrays, DType dtype, const void* first, const void* second,
                  const ExecutionContext& ctx) {
  int64_t largest = 0;
  for (int i = 0; i < arrays.count; ++i) largest = std::max(largest, arrays.arrays[i].size);
  dispatch_floating(dtype, "scaled", [&](auto tag) {
    using T = decltype(tag);
    launch_early("scale", scale_kernel<T>, grid_size(largest, kThreadsPerBlock), kThreadsPerBlock,
                 0, ctx.stream, arrays, static_cast<const Accumulator<T>*>(first),
                 static_cast<const Accumulator<T>*>(second));
  });
}

}  // namespace deepcrf::cuda
