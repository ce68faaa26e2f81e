// Splat and blur on permutohedral lattices, of up to kMaxLattices in one launch.
//
// Values lie in rows of whole vectors, one row a position or lattice point; a group of threads, a
// power of two, shares a row. How many points a lattice has is read on the device.
#pragma once

#include <algorithm>

#include "core/workspace.h"
#include "cuda/arithmetic.cuh"
#include "cuda/launch.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warps.cuh"
#include "ops/permutohedral.h"

namespace deepcrf::cuda {

constexpr int kMaxLattices = 4;

// Grids over lattice points, whose number the host may not know, are sized for at most one point
// for so many positions, as photos have them; where there are more, threads go round.
constexpr int64_t kPositionsPerPoint = 8;

// Corners, sorted by lattice point, that a group of threads splats.
constexpr int kSplatTile = 32;
// And how many of them at a time: their loads are under way together.
constexpr int kSplatStep = 4;
// The same of the corners of a position: all in two dimensions, half of them in five.
constexpr int kSliceStep = 3;

// A row of channels: vectors of kVector<T> values, the last one padded with zeros.
template <class T>
struct RowShape {
  int num_channels;
  int vectors;
  int group_bits;  // of the number of threads in a group

  explicit RowShape(int64_t channels)
      : num_channels(static_cast<int>(channels)),
        vectors(ceil_div(num_channels, kVector<T>)),
        group_bits(0) {
    while ((1 << group_bits) < vectors && (1 << group_bits) < kWarpSize) ++group_bits;
  }

  __host__ __device__ int64_t width() const { return static_cast<int64_t>(vectors) * kVector<T>; }
  __host__ __device__ int group_size() const { return 1 << group_bits; }
  unsigned int grid(int64_t rows) const { return grid_size(rows, kThreadsPerBlock >> group_bits); }
  unsigned int point_grid(const PermutohedralLattice& lattice) const {
    return grid(std::min(lattice.max_points, ceil_div(lattice.num_values, kPositionsPerPoint)));
  }

  // Rows of this thread: `for (row = first_row(); row < count; row += num_rows())`, and its vectors
  // of each: `for (v = first_vector(); v < vectors; v += group_size())`.
  __device__ int64_t first_row() const { return first_thread() >> group_bits; }
  __device__ int64_t num_rows() const { return num_threads() >> group_bits; }
  __device__ int first_vector() const { return threadIdx.x & (group_size() - 1); }
};

template <class T>
__device__ void load_vector(const T* row,  // [width]
                            int v, T (&values)[kVector<T>]) {
  load_values(row + v * kVector<T>, kVector<T>, true, values);
}
template <class T>
__device__ void store_vector(T* row,  // [width]
                             int v, const T (&values)[kVector<T>]) {
  store_values(row + v * kVector<T>, kVector<T>, true, values);
}

// The values of one lattice while it filters.
template <class T>
struct LatticeValues {
  PermutohedralLattice lattice;
  T* points;   // [M, width], splatted; blurs go to and fro
  T* blurred;  // [M, width]
  T* carries;  // [tiles, width], what a tile adds to a point that began in a tile before

  LatticeValues() = default;
  LatticeValues(Workspace& workspace, const PermutohedralLattice& lattice, const RowShape<T>& shape)
      : lattice(lattice),
        points(workspace.take<T>(lattice.max_points * shape.width())),
        blurred(workspace.take<T>(lattice.max_points * shape.width())),
        carries(workspace.take<T>(num_tiles() * shape.width())) {}

  __host__ __device__ int64_t num_tiles() const {
    return ceil_div<int64_t>(lattice.num_pairs(), kSplatTile);
  }
};

// One launch works on some lattices, each on its own blockIdx.y: as a __grid_constant__ the
// argument is indexed where it lies, not copied by every thread. Weight is the type of the weights
// that values are splatted with.
template <class T, class Weight>
struct SplatTask {
  LatticeValues<T> values;
  const Weight* weights;  // [P], of the sorted corners
};
template <class T, class Weight>
struct SplatTasks {
  SplatTask<T, Weight> tasks[kMaxLattices];
};

// Where the rows of positions come from.
template <class T>
struct PositionRows {
  const T* values;  // [N, pitch]
  int64_t pitch;
  bool aligned;  // every vector is whole, at an address for one access
};

// The sums of the corners of each lattice point (a segmented reduction). One group a tile of the
// sorted corners: sums of the points that begin in it go to their rows, what a point has from
// further tiles to `carries`.
template <class T, class Weight>
__global__ void splat_kernel(const __grid_constant__ SplatTasks<T, Weight> tasks,
                             PositionRows<T> rows, RowShape<T> shape) {
  wait_for_former_kernels();
  const SplatTask<T, Weight>& task = tasks.tasks[blockIdx.y];
  const int64_t count = task.values.lattice.num_pairs();
  const int64_t tiles = task.values.num_tiles();
  for (int64_t tile = shape.first_row(); tile < tiles; tile += shape.num_rows()) {
    const int64_t begin = tile * kSplatTile;
    const int corners = static_cast<int>(min(count - begin, int64_t{kSplatTile}));
    const int32_t* points = task.values.lattice.splat_points + begin;        // [corners]
    const int32_t* positions = task.values.lattice.splat_positions + begin;  // [corners]
    const Weight* weights = task.weights + begin;                            // [corners]
    for (int v = shape.first_vector(); v < shape.vectors; v += shape.group_size()) {
      const int channel = v * kVector<T>;
      const ByteRows<T> of_positions(rows.values + channel, rows.pitch);
      int32_t point = points[0];
      T* to = begin > 0 && points[-1] == point ? task.values.carries + tile * shape.width()
                                               : task.values.points + point * shape.width();
      T sum[kVector<T>] = {};
      for (int first = 0; first < corners; first += kSplatStep) {
        int32_t corner_points[kSplatStep];
        T weight[kSplatStep];
        T values[kSplatStep][kVector<T>];
#pragma unroll
        for (int i = 0; i < kSplatStep; ++i) {
          const int corner = min(first + i, corners - 1);
          corner_points[i] = points[corner];
          weight[i] = T(weights[corner]);
          load_values(of_positions[positions[corner]], shape.num_channels - channel, rows.aligned,
                      values[i]);
        }
#pragma unroll
        for (int i = 0; i < kSplatStep; ++i) {
          if (first + i >= corners) break;
          if (corner_points[i] != point) {
            store_vector(to, v, sum);
            point = corner_points[i];
            to = task.values.points + point * shape.width();
#pragma unroll
            for (int j = 0; j < kVector<T>; ++j) sum[j] = 0;
          }
#pragma unroll
          for (int j = 0; j < kVector<T>; ++j) sum[j] += weight[i] * values[i][j];
        }
      }
      store_vector(to, v, sum);
    }
  }
}

// Adds the carries of further tiles to the points that go on beyond their first tile. One warp a
// tile in which such a point begins; the groups of a warp take turns at the carries.
template <class T, class Weight>
__global__ void join_tiles_kernel(const __grid_constant__ SplatTasks<T, Weight> tasks,
                                  RowShape<T> shape) {
  wait_for_former_kernels();
  const LatticeValues<T>& values = tasks.tasks[blockIdx.y].values;
  const int32_t* points = values.lattice.splat_points;  // [P]
  const int64_t tiles = values.num_tiles();
  const int group = lane_index() >> shape.group_bits;
  const int groups = kWarpSize >> shape.group_bits;
  for (int64_t tile = first_warp(); tile + 1 < tiles; tile += num_warps()) {
    const int32_t point = points[(tile + 1) * kSplatTile - 1];
    const auto reaches = [&](int64_t other) {
      return other < tiles && points[other * kSplatTile] == point;
    };
    const bool began_before = tile > 0 && points[tile * kSplatTile - 1] == point;
    if (began_before || !reaches(tile + 1)) continue;
    for (int first = 0; first < shape.vectors; first += shape.group_size()) {
      const int v = first + shape.first_vector();
      const bool active = v < shape.vectors;
      T sum[kVector<T>] = {};
      const auto add_carry = [&](int64_t other) {
        T carry[kVector<T>];
        load_vector(values.carries + other * shape.width(), v, carry);
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) sum[j] += carry[j];
      };
      int64_t other = tile + 1 + group;
      while (active && reaches(other + 3 * groups)) {
#pragma unroll
        for (int i = 0; i < 4; ++i) add_carry(other + i * groups);
        other += 4 * groups;
      }
      for (; active && reaches(other); other += groups) add_carry(other);
      for (int offset = shape.group_size(); offset < kWarpSize; offset *= 2) {
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) {
          sum[j] += __shfl_xor_sync(kAllLanes, sum[j], offset);
        }
      }
      if (!active || group != 0) continue;
      T* row = values.points + point * shape.width();
      T begun[kVector<T>];
      load_vector(row, v, begun);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) sum[j] += begun[j];
      store_vector(row, v, sum);
    }
  }
}

template <class T>
struct BlurTask {
  const int32_t* num_points;  // [1]
  const int32_t* neighbours;  // [M, 2], along one axis
  const T* from;              // [M, width]
  T* to;                      // [M, width]
};
template <class T>
struct BlurTasks {
  BlurTask<T> tasks[kMaxLattices];
};

// Every point plus half of its neighbours along an axis. One group a point.
template <class T>
__global__ void blur_kernel(const __grid_constant__ BlurTasks<T> tasks, RowShape<T> shape) {
  wait_for_former_kernels();
  const BlurTask<T>& task = tasks.tasks[blockIdx.y];
  const int32_t num_points = *task.num_points;
  for (int64_t point = shape.first_row(); point < num_points; point += shape.num_rows()) {
    const int2 sides = reinterpret_cast<const int2*>(task.neighbours)[point];
    for (int v = shape.first_vector(); v < shape.vectors; v += shape.group_size()) {
      T values[kVector<T>], below[kVector<T>] = {}, above[kVector<T>] = {};
      load_vector(task.from + point * shape.width(), v, values);
      if (sides.x >= 0) load_vector(task.from + sides.x * shape.width(), v, below);
      if (sides.y >= 0) load_vector(task.from + sides.y * shape.width(), v, above);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) values[j] += T(0.5) * (below[j] + above[j]);
      store_vector(task.to + point * shape.width(), v, values);
    }
  }
}

// Sends rows of positions to the points of `count` lattices over the same positions.
template <class T, class Weight>
void splat(const SplatTasks<T, Weight>& tasks, int count, const PositionRows<T>& rows,
           const RowShape<T>& shape, void* stream) {
  int64_t most_tiles = 0;
  for (int i = 0; i < count; ++i) {
    most_tiles = std::max(most_tiles, tasks.tasks[i].values.num_tiles());
  }
  launch_early("splat", splat_kernel<T, Weight>, dim3(shape.grid(most_tiles), count),
               kThreadsPerBlock, 0, stream, tasks, rows, shape);
  launch_early("join_tiles", join_tiles_kernel<T, Weight>,
               dim3(grid_size(most_tiles, kWarpsPerBlock), count), kThreadsPerBlock, 0, stream,
               tasks, shape);
}

// Blurs the points of `count` lattices along all axes; they are in `points` again afterwards.
template <class T>
void blur(LatticeValues<T>* const* values, int count, bool transposed, const RowShape<T>& shape,
          void* stream) {
  int64_t passes = 0;
  for (int i = 0; i < count; ++i) passes = std::max(passes, values[i]->lattice.num_dims + 1);
  for (int64_t pass = 0; pass < passes; ++pass) {
    BlurTasks<T> tasks = {};
    unsigned int open = 0;
    unsigned int blocks = 0;
    for (int i = 0; i < count; ++i) {
      LatticeValues<T>& filtered = *values[i];
      const PermutohedralLattice& lattice = filtered.lattice;
      if (pass > lattice.num_dims) continue;
      const int64_t axis = transposed ? lattice.num_dims - pass : pass;
      tasks.tasks[open++] = {lattice.num_points, lattice.neighbours + axis * lattice.max_points * 2,
                             filtered.points, filtered.blurred};
      blocks = std::max(blocks, shape.point_grid(lattice));
      std::swap(filtered.points, filtered.blurred);
    }
    launch_early("blur", blur_kernel<T>, dim3(blocks, open), kThreadsPerBlock, 0, stream, tasks,
                 shape);
  }
}

// sum += sum over the corners of a position of weight * point, for one vector of channels.
template <class T>
__device__ void slice_vector(const LatticeValues<T>& values, int64_t position, int v, int64_t width,
                             T (&sum)[kVector<T>]) {
  const int corners = static_cast<int>(values.lattice.num_dims) + 1;
  const int32_t* vertices = values.lattice.vertices + position * corners;
  const float* weights = values.lattice.weights + position * corners;
  for (int first = 0; first < corners; first += kSliceStep) {
    int32_t vertex[kSliceStep];
    T weight[kSliceStep];
    T point[kSliceStep][kVector<T>];
#pragma unroll
    for (int i = 0; i < kSliceStep; ++i) {
      const int c = min(first + i, corners - 1);
      vertex[i] = vertices[c];
      weight[i] = static_cast<T>(weights[c]);
    }
#pragma unroll
    for (int i = 0; i < kSliceStep; ++i)
      load_vector(values.points + vertex[i] * width, v, point[i]);
#pragma unroll
    for (int i = 0; i < kSliceStep; ++i) {
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        if (first + i < corners) sum[j] += weight[i] * point[i][j];
      }
    }
  }
}

}  // namespace deepcrf::cuda
