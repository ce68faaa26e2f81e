#include "ops/gated_crf_loss.h"

#include <algorithm>

#include "core/workspace.h"
#include "cuda/arithmetic.cuh"
#include "cuda/launch.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

namespace {

constexpr int kMostLabels = 8;  // whose sums one thread holds

template <class T>
struct Kernel {
  T weight;
  T position_factor;
  T colour_factor;
};

template <class T>
struct Problem {
  int64_t batch_size, num_pixels;  // N = Z * Y * X
  int num_labels, num_channels;
  int depth, height, width, radius;
  const T* probabilities;  // [B, K, N]
  const T* image;          // [B, C, N]
  const T* mask;           // [B, N], or null for ones
  T* gradient;             // [B, K, N], or null
  int num_kernels;
  Kernel<T> kernels[kMaxGatedKernels];

  Problem(const GatedCRFLoss& loss, const GatedKernels& given)
      : batch_size(loss.batch_size),
        num_pixels(loss.depth * loss.height * loss.width),
        num_labels(static_cast<int>(loss.num_labels)),
        num_channels(static_cast<int>(loss.num_channels)),
        depth(static_cast<int>(loss.depth)),
        height(static_cast<int>(loss.height)),
        width(static_cast<int>(loss.width)),
        radius(static_cast<int>(
            std::min(loss.radius, std::max({loss.depth, loss.height, loss.width})))),
        probabilities(static_cast<const T*>(loss.probabilities)),
        image(static_cast<const T*>(loss.image)),
        mask(static_cast<const T*>(loss.mask)),
        gradient(static_cast<T*>(loss.gradient)),
        num_kernels(given.count) {
    for (int j = 0; j < num_kernels; ++j) {
      kernels[j] = {static_cast<T>(given.kernels[j].weight),
                    static_cast<T>(given.kernels[j].position_factor),
                    static_cast<T>(given.kernels[j].colour_factor)};
    }
  }

  __device__ T mask_at(int64_t b, int64_t pixel) const {
    return mask == nullptr ? T(1) : mask[b * num_pixels + pixel];
  }

  // κ of two pixels of image b, `steps` squared pixels apart.
  __device__ T affinity(int64_t b, int64_t p, int64_t q, T steps) const {
    const T* colours = image + b * num_channels * num_pixels;
    T distance = 0;
    for (int c = 0; c < num_channels; ++c) {
      const T difference = colours[c * num_pixels + p] - colours[c * num_pixels + q];
      distance += difference * difference;
    }
    T sum = 0;
    for (int j = 0; j < num_kernels; ++j) {
      const Kernel<T>& kernel = kernels[j];
      // Positions alone: a colour that is not finite must not matter.
      const T colour = kernel.colour_factor == 0 ? T(0) : kernel.colour_factor * distance;
      sum += kernel.weight * exponential(-kernel.position_factor * steps - colour);
    }
    return sum;
  }
};

// One thread a pixel and block of labels. Pairs are looked at once, or, with a gradient, both ways
// and half of the loss each; those of the first block of labels add the 1 of 1 - S_p S_q.
template <class T, int kLabels>
__global__ void gated_crf_loss_kernel(Problem<T> problem,
                                      double* parts) {  // [blocks]
  const int64_t N = problem.num_pixels;
  const int K = problem.num_labels;
  const bool both_ways = problem.gradient != nullptr;
  const int64_t label_blocks = ceil_div(K, kLabels);
  double total = 0;
  for (int64_t i = first_thread(); i < problem.batch_size * label_blocks * N; i += num_threads()) {
    const int64_t p = i % N;
    const int64_t b = i / N / label_blocks;
    const int first = static_cast<int>(i / N % label_blocks) * kLabels;
    const int x = static_cast<int>(p % problem.width);
    const int y = static_cast<int>(p / problem.width % problem.height);
    const int z = static_cast<int>(p / problem.width / problem.height);
    const T own_mask = problem.mask_at(b, p);

    // The last block repeats its last label, so that no load depends on a condition.
    const T* labels[kLabels];
    T sums[kLabels] = {};
#pragma unroll
    for (int j = 0; j < kLabels; ++j) {
      labels[j] = problem.probabilities + (b * K + min(first + j, K - 1)) * N;
    }
    T pairs = 0;
    const int last_z = min(z + problem.radius, problem.depth - 1);
    const int last_y = min(y + problem.radius, problem.height - 1);
    const int last_x = min(x + problem.radius, problem.width - 1);
    for (int qz = both_ways ? max(z - problem.radius, 0) : z; qz <= last_z; ++qz) {
      const bool all_rows = both_ways || qz > z;
      for (int qy = all_rows ? max(y - problem.radius, 0) : y; qy <= last_y; ++qy) {
        const bool own_row = qz == z && qy == y;
        const int64_t row = (static_cast<int64_t>(qz) * problem.height + qy) * problem.width;
        const T row_steps = T(qz - z) * T(qz - z) + T(qy - y) * T(qy - y);
        for (int qx = own_row && !both_ways ? x + 1 : max(x - problem.radius, 0); qx <= last_x;
             ++qx) {
          if (own_row && qx == x) continue;
          const int64_t q = row + qx;
          const T steps = row_steps + T(qx - x) * T(qx - x);
          const T affinity = problem.affinity(b, p, q, steps) * (own_mask + problem.mask_at(b, q));
          pairs += affinity;
#pragma unroll
          for (int j = 0; j < kLabels; ++j) sums[j] += affinity * labels[j][q];
        }
      }
    }

    T part = first == 0 ? pairs : T(0);
#pragma unroll
    for (int j = 0; j < kLabels; ++j) {
      if (first + j < K) {
        part -= labels[j][p] * sums[j];
        if (both_ways) problem.gradient[(b * K + first + j) * N + p] = -sums[j];
      }
    }
    total += both_ways ? part / 2 : part;
  }

  __shared__ double warp_totals[kWarpsPerBlock];
  total = warp_sum(total);
  if (lane_index() == 0) warp_totals[threadIdx.x / kWarpSize] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int warp = 0; warp < kWarpsPerBlock; ++warp) sum += warp_totals[warp];
    parts[blockIdx.x] = sum;
  }
}

// One warp.
template <class T>
__global__ void sum_totals_kernel(const double* parts,  // [count]
                                  int64_t count,
                                  T* total) {  // []
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kWarpSize) sum += parts[i];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) *total = static_cast<T>(sum);
}

int labels_per_thread(int64_t num_labels) {
  return num_labels > 4 ? kMostLabels : num_labels > 2 ? 4 : 2;
}

unsigned int loss_grid(const GatedCRFLoss& loss) {
  const int64_t pixels = loss.batch_size * loss.depth * loss.height * loss.width;
  const int64_t label_blocks =
      ceil_div<int64_t>(loss.num_labels, labels_per_thread(loss.num_labels));
  return grid_size(pixels * label_blocks, kThreadsPerBlock);
}

template <class T, int kLabels>
void run(const GatedCRFLoss& loss, const GatedKernels& kernels, const ExecutionContext& ctx) {
  Workspace workspace(ctx.workspace, ctx.workspace_bytes);
  const unsigned int blocks = loss_grid(loss);
  double* parts = workspace.take<double>(blocks);
  launch("gated_crf_loss", gated_crf_loss_kernel<T, kLabels>, blocks, kThreadsPerBlock, 0,
         ctx.stream, Problem<T>(loss, kernels), parts);
  launch("gated_crf_loss total", sum_totals_kernel<T>, 1, kWarpSize, 0, ctx.stream, parts,
         static_cast<int64_t>(blocks), static_cast<T*>(loss.total));
}

}  // namespace

int64_t gated_crf_loss_workspace(const GatedCRFLoss& loss) {
  Workspace workspace;
  workspace.take<double>(loss_grid(loss));
  return workspace.used();
}

void gated_crf_loss(const GatedCRFLoss& loss, const GatedKernels& kernels,
                    const ExecutionContext& ctx) {
  dispatch_native_floating(loss.dtype, "probabilities", [&](auto tag) {
    using T = decltype(tag);
    switch (labels_per_thread(loss.num_labels)) {
      case 2: return run<T, 2>(loss, kernels, ctx);
      case 4: return run<T, 4>(loss, kernels, ctx);
      default: return run<T, kMostLabels>(loss, kernels, ctx);
    }
  });
}

}  // namespace deepcrf::cuda
