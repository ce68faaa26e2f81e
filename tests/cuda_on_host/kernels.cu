// Kernels that exercise the shim: shuffles, barriers, shared memory, tensor-core products,
// asynchronous copies.
#include "kernels.h"

#include "cuda/async_copy.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "cuda/tf32.cuh"

namespace deepcrf::cuda {

namespace {

constexpr int kThreads = 128;

__device__ float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

__device__ float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// One warp a row.
__global__ void softmax_kernel(const float* input,  // [rows, columns]
                               float* output,       // [rows, columns]
                               int64_t rows, int columns) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32; row < rows; row += warps) {
    float largest = -INFINITY;
    for (int i = lane; i < columns; i += 32) largest = fmaxf(largest, input[row * columns + i]);
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int i = lane; i < columns; i += 32) sum += __expf(input[row * columns + i] - largest);
    sum = warp_sum(sum);
    for (int i = lane; i < columns; i += 32) {
      output[row * columns + i] = __expf(input[row * columns + i] - largest) / sum;
    }
  }
}

// The sum of each row: one block a row, a partial sum a warp, the last warp's job done by the
// first.
__global__ void block_sum_kernel(const float* input,  // [rows, columns]
                                 float* output,       // [rows]
                                 int64_t rows, int columns) {
  __shared__ float partial[kThreads / 32];
  const int lane = threadIdx.x % 32;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < columns; i += kThreads) sum += input[row * columns + i];
    sum = warp_sum(sum);
    if (lane == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
      sum = warp_sum(lane < kThreads / 32 ? partial[lane] : 0.0f);
      if (lane == 0) output[row] = sum;
    }
    __syncthreads();
  }
}

constexpr int kTile = 64;   // rows and columns of c a block computes
constexpr int kDepth = 32;  // columns of a, rows of b a stage holds
constexpr int kPitchA = kDepth + 8;
constexpr int kPitchB = kTile + 8;
constexpr int kStageElements = kTile * kPitchA + kDepth * kPitchB;
constexpr size_t kMatmulShared = 2 * kStageElements * sizeof(__nv_bfloat16);

// Starts copying one stage; rows and columns past the ends are zeros. All sizes are multiples of 8.
__device__ void load_stage(__nv_bfloat16* stage, const __nv_bfloat16* a, const __nv_bfloat16* b,
                           int m, int n, int k, int row0, int column0, int depth0) {
  for (int i = threadIdx.x; i < kTile * kDepth / 8; i += kThreads) {
    const int row = i / (kDepth / 8);
    const int depth = i % (kDepth / 8) * 8;
    const bool inside = row0 + row < m && depth0 + depth < k;
    const int64_t offset = inside ? static_cast<int64_t>(row0 + row) * k + depth0 + depth : 0;
    cp_async_16(stage + row * kPitchA + depth, a + offset, inside);
  }
  __nv_bfloat16* stage_b = stage + kTile * kPitchA;
  for (int i = threadIdx.x; i < kTile * kDepth / 8; i += kThreads) {
    const int depth = i / (kTile / 8);
    const int column = i % (kTile / 8) * 8;
    const bool inside = depth0 + depth < k && column0 + column < n;
    const int64_t offset = inside ? static_cast<int64_t>(depth0 + depth) * n + column0 + column : 0;
    cp_async_16(stage_b + depth * kPitchB + column, b + offset, inside);
  }
  cp_async_commit();
}

// Two values, `step` apart, as a product takes them.
__device__ uint32_t pair(const __nv_bfloat16* values, int step) {
  return pair_bits(__halves2bfloat162(values[0], values[step]));
}

// c = a b. Four warps of 32x32 a block, two stages of shared memory.
__global__ void __launch_bounds__(kThreads) matmul_kernel(const __nv_bfloat16* a,  // [m, k]
                                                          const __nv_bfloat16* b,  // [k, n]
                                                          float* c,                // [m, n]
                                                          int m, int n, int k) {
  __nv_bfloat16* stages = dynamic_shared<__nv_bfloat16>();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int warp_row = warp / 2 * 32;
  const int warp_column = warp % 2 * 32;
  const int tiles_n = (n + kTile - 1) / kTile;
  const int tiles = (m + kTile - 1) / kTile * tiles_n;

  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int row0 = tile / tiles_n * kTile;
    const int column0 = tile % tiles_n * kTile;
    float sums[2][4][4] = {};
    load_stage(stages, a, b, m, n, k, row0, column0, 0);
    int current = 0;
    for (int depth0 = 0; depth0 < k; depth0 += kDepth, current ^= 1) {
      if (depth0 + kDepth < k) {
        load_stage(stages + (current ^ 1) * kStageElements, a, b, m, n, k, row0, column0,
                   depth0 + kDepth);
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      __syncthreads();
      const __nv_bfloat16* stage_a = stages + current * kStageElements;
      const __nv_bfloat16* stage_b = stage_a + kTile * kPitchA;
      for (int step = 0; step < kDepth; step += 16) {
        const int depth = step + lane % 4 * 2;
        uint32_t fragments_a[2][4];
        for (int i = 0; i < 2; ++i) {
          for (int part = 0; part < 4; ++part) {
            const int row = warp_row + 16 * i + lane / 4 + part % 2 * 8;
            fragments_a[i][part] = pair(stage_a + row * kPitchA + depth + part / 2 * 8, 1);
          }
        }
        for (int j = 0; j < 4; ++j) {
          const __nv_bfloat16* column = stage_b + warp_column + 8 * j + lane / 4;
          const uint32_t fragment_b[2] = {pair(column + depth * kPitchB, kPitchB),
                                          pair(column + (depth + 8) * kPitchB, kPitchB)};
          for (int i = 0; i < 2; ++i)
            mma_m16n8k16<bfloat16>(sums[i][j], fragments_a[i], fragment_b);
        }
      }
      __syncthreads();
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) {
        for (int part = 0; part < 4; ++part) {
          const int row = row0 + warp_row + 16 * i + lane / 4 + part / 2 * 8;
          const int column = column0 + warp_column + 8 * j + lane % 4 * 2 + part % 2;
          if (row < m && column < n) c[static_cast<int64_t>(row) * n + column] = sums[i][j][part];
        }
      }
    }
  }
}

// c = a b, rounded to TensorFloat32 before. One warp.
__global__ void tf32_product_kernel(const float* a,  // [16, 8]
                                    const float* b,  // [8, 8]
                                    float* c) {      // [16, 8]
  const int g = threadIdx.x / 4;
  const int t = threadIdx.x % 4;
  const auto bits = [](float value) { return __float_as_uint(round_to_tf32(value)); };
  const uint32_t fragment_a[4] = {bits(a[g * 8 + t]), bits(a[(g + 8) * 8 + t]),
                                  bits(a[g * 8 + t + 4]), bits(a[(g + 8) * 8 + t + 4])};
  const uint32_t fragment_b[2] = {bits(b[t * 8 + g]), bits(b[(t + 4) * 8 + g])};
  float sums[4] = {};
  mma_m16n8k8_tf32(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) c[fragment_row(i) * 8 + fragment_column(i)] = sums[i];
}

// The sum of all inputs: a partial sum a block, the last block to finish adds them in order.
__global__ void last_block_sum_kernel(const int* input,  // [count]
                                      int* partial,      // [gridDim.x]
                                      int* counter,      // [1], zero
                                      int* output,       // [1]
                                      int64_t count) {
  __shared__ bool is_last;
  int sum = 0;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    sum += input[i];
  }
  sum = __reduce_add_sync(0xffffffffu, sum);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicAdd(counter, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0) {
    __threadfence();
    int total = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) total += partial[i];
    *output = total;
  }
}

// votes[i] = lanes of i's warp whose value is i's own; ranks[i] = how many smaller lanes are
// positive.
__global__ void vote_kernel(const int* input,  // [count], count a multiple of 32
                            int* same,         // [count]
                            int* ranks) {      // [count]
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned positive = __ballot_sync(0xffffffffu, input[i] > 0);
  same[i] = static_cast<int>(__match_any_sync(0xffffffffu, input[i]));
  ranks[i] = __popc(positive & ((1u << threadIdx.x % 32) - 1));
}

}  // namespace

void softmax(const float* input, float* output, int64_t rows, int columns) {
  launch("softmax", softmax_kernel, grid_size(rows, kThreads / 32), kThreads, 0, nullptr, input,
         output, rows, columns);
}

void block_sum(const float* input, float* output, int64_t rows, int columns) {
  launch("block_sum", block_sum_kernel, grid_size(rows, 1), kThreads, 0, nullptr, input, output,
         rows, columns);
}

void matmul(const bfloat16* a, const bfloat16* b, float* c, int m, int n, int k) {
  const int64_t tiles = static_cast<int64_t>((m + kTile - 1) / kTile) * ((n + kTile - 1) / kTile);
  launch("matmul", matmul_kernel, grid_size(tiles, 1), kThreads, kMatmulShared, nullptr,
         reinterpret_cast<const __nv_bfloat16*>(a), reinterpret_cast<const __nv_bfloat16*>(b), c, m,
         n, k);
}

void tf32_product(const float* a, const float* b, float* c) {
  launch("tf32_product", tf32_product_kernel, 1, 32, 0, nullptr, a, b, c);
}

void last_block_sum(const int* input, int* partial, int* counter, int* output, int64_t count,
                    int blocks) {
  launch("last_block_sum", last_block_sum_kernel, blocks, 32, 0, nullptr, input, partial, counter,
         output, count);
}

void vote(const int* input, int* same, int* ranks, int64_t count) {
  launch("vote", vote_kernel, static_cast<unsigned>(count / 32), 32, 0, nullptr, input, same,
         ranks);
}

}  // namespace deepcrf::cuda
