// Building a permutohedral lattice.
//
// Positions are computed in float32 and, by --fmad=false (csrc/sources.cmake), in the order written
// here and no other, which is that of the CPU: whether a lattice point exists at all depends on the
// last bit of a position on the border of a simplex, and every device must come to the same
// lattice. Every corner of a simplex then finds its lattice point in a hash table; points are
// numbered in the order of their first corners, and the corners sorted by point, so that nothing
// depends on the order of threads.
#include <algorithm>
#include <cmath>

#include "core/lattice_embedding.h"
#include "core/workspace.h"
#include "cuda/corner_table.cuh"
#include "cuda/sort_pairs.cuh"
#include "ops/permutohedral.h"

namespace deepcrf::cuda {

namespace {

struct Embedding {
  float scale[kMaxLatticeDims];

  explicit Embedding(int64_t num_dims) {
    for (int64_t i = 0; i < num_dims; ++i) scale[i] = lattice_embedding_scale(i, num_dims);
  }
};

// A value for each of d + 1 coordinates: registers where D says how many there are, scratch memory
// where D is 0.
template <class T, int D>
struct Coordinates {
  T values[D + 1];

  __device__ Coordinates(T*, int64_t, int64_t) {}
  __device__ T& operator[](int i) { return values[i]; }
  // values[i] = value, for an i that the compiler does not know.
  __device__ void put(int i, T value) {
#pragma unroll
    for (int j = 0; j <= D; ++j) values[j] = i == j ? value : values[j];
  }
};
template <class T>
struct Coordinates<T, 0> {
  T* values;
  int64_t stride;

  __device__ Coordinates(T* scratch, int64_t num_values, int64_t position)
      : values(scratch + position), stride(num_values) {}
  __device__ T& operator[](int i) { return values[i * stride]; }
  __device__ void put(int i, T value) { values[i * stride] = value; }
};

// The scratch memory of Coordinates<T, 0>; null where D says how many there are.
struct CoordinateScratch {
  float* elevated;  // [d + 1, N]
  float* offset;    // [d + 1, N]
  int32_t* rank;    // [d + 1, N]
};

bool has_static_dims(int64_t num_dims) { return num_dims == 2 || num_dims == 3 || num_dims == 5; }

// One thread a position. D is d, or 0 where only the argument says it.
template <int D>
__global__ void place_kernel(const float* features,  // [d, N]
                             int64_t num_values, int num_dims, Embedding embedding,
                             CoordinateScratch scratch,
                             int32_t* origins,  // [N, d]
                             uint8_t* ranks,    // [N, d + 1]
                             float* weights) {  // [N, d + 1]
  const int d = D > 0 ? D : num_dims;
  const float up = static_cast<float>(d + 1);
  const float down = 1.0f / up;
  const float magic = 12582912.0f;  // adding it rounds to an integer
  for (int64_t n = first_thread(); n < num_values; n += num_threads()) {
    Coordinates<float, D> elevated(scratch.elevated, num_values, n);
    Coordinates<float, D> offset(scratch.offset, num_values, n);
    Coordinates<int32_t, D> rank(scratch.rank, num_values, n);

    float sum = 0;
    bool good = true;
#pragma unroll
    for (int j = d; j > 0; --j) {
      const float scaled = features[(j - 1) * num_values + n] * embedding.scale[j - 1];
      elevated[j] = sum - static_cast<float>(j) * scaled;
      good = good && fabsf(elevated[j]) <= static_cast<float>(kLargestCoordinate);
      sum = sum + scaled;
    }
    elevated[0] = sum;
    good = good && fabsf(sum) <= static_cast<float>(kLargestCoordinate);

    // The nearest vertex of colour 0, coordinate by coordinate, for now in `offset`.
    float excess = 0;
#pragma unroll
    for (int i = 0; i <= d; ++i) {
      if (!good) elevated[i] = 0;
      const float rounded = (elevated[i] * down + magic) - magic;
      offset[i] = rounded * up;
      excess = excess + rounded;
    }
#pragma unroll
    for (int i = 0; i <= d; ++i) {
      const float distance = elevated[i] - offset[i];
      int place = 0;
#pragma unroll
      for (int j = 0; j <= d; ++j) {
        const float other = elevated[j] - offset[j];
        place += distance < other || (distance == other && j < i) ? 1 : 0;
      }
      rank[i] = place;
    }

    // A vertex off the plane: move the coordinates that are rounded worst.
    const int shift = static_cast<int>(excess);
#pragma unroll
    for (int i = 0; i <= d; ++i) {
      const int moved = rank[i] + shift;
      const int wrap = (moved < 0 ? d + 1 : 0) - (moved > d ? d + 1 : 0);
      const float vertex = offset[i] + static_cast<float>(wrap);
      rank[i] = moved + wrap;
      offset[i] = (elevated[i] - vertex) * down;
      if (i < d) origins[n * d + i] = static_cast<int32_t>(vertex);
      ranks[n * (d + 1) + i] = static_cast<uint8_t>(rank[i]);
    }

    // Barycentric coordinates (Adams et al., proposition 4.2): differences of the sorted offsets.
#pragma unroll
    for (int i = 0; i <= d; ++i) elevated.put(rank[i], offset[i]);
    float* barycentric = weights + n * (d + 1);
    barycentric[0] = good ? elevated[d] + (1.0f - elevated[0]) : NAN;
#pragma unroll
    for (int r = 1; r <= d; ++r)
      barycentric[r] = good ? elevated[d - r] - elevated[d - r + 1] : NAN;
  }
}

// The slot, 32 bits without a sign, of the lattice point of every corner.
__global__ void insert_kernel(CornerTable table, int64_t num_corners,
                              int32_t* vertices) {  // [P], slots afterwards
  for (int64_t e = first_thread(); e < num_corners; e += num_threads()) {
    vertices[e] = static_cast<int32_t>(static_cast<uint32_t>(table.insert(e)));
  }
}

// The first corner at the lattice point of every corner, and whether it is that corner itself.
__global__ void first_corners_kernel(CornerTable table, int64_t num_corners,
                                     int32_t* vertices,    // [P], slots, then first corners
                                     int32_t* is_first) {  // [P]
  for (int64_t e = first_thread(); e < num_corners; e += num_threads()) {
    const int32_t first = CornerTable::corner_in(table.slots[static_cast<uint32_t>(vertices[e])]);
    vertices[e] = first;
    is_first[e] = first == e ? 1 : 0;
  }
}

// The lattice point of every corner.
__global__ void number_kernel(const int32_t* numbers,  // [P], of points by first corner
                              int64_t num_corners,
                              int32_t* point_corners,  // [M], the first corner of each point
                              int32_t* vertices) {     // [P], first corners, then points
  for (int64_t e = first_thread(); e < num_corners; e += num_threads()) {
    const int32_t first = vertices[e];
    const int32_t point = numbers[first];
    if (first == e) point_corners[point] = first;
    vertices[e] = point;
  }
}

// One thread a lattice point and axis.
__global__ void neighbours_kernel(CornerTable table, int64_t max_points,
                                  const int32_t* num_points,     // [1]
                                  const int32_t* point_corners,  // [M]
                                  const int32_t* numbers,        // [P], of points by first corner
                                  int32_t* neighbours) {         // [d + 1, max_points, 2]
  const int axes = table.corners.num_dims + 1;
  const int64_t count = static_cast<int64_t>(*num_points) * axes;
  for (int64_t i = first_thread(); i < count; i += num_threads()) {
    const int64_t point = i / axes;
    const int axis = static_cast<int>(i - point * axes);
    int32_t* pair = neighbours + (axis * max_points + point) * 2;
    for (int side = 0; side < 2; ++side) {
      const int32_t corner =
          table.find(LatticePoint(table.corners, point_corners[point], side == 0 ? -1 : 1, axis));
      pair[side] = corner < 0 ? -1 : numbers[corner];
    }
  }
}

// The sorted corners as the splat takes them.
__global__ void splat_order_kernel(const int32_t* keys,     // [P], sorted points
                                   const int32_t* corners,  // [P], sorted
                                   int64_t num_corners, int num_dims,
                                   const float* weights,      // [N, d + 1]
                                   int32_t* splat_points,     // [P]
                                   int32_t* splat_positions,  // [P]
                                   float* splat_weights) {    // [P]
  for (int64_t i = first_thread(); i < num_corners; i += num_threads()) {
    const int32_t corner = corners[i];
    splat_points[i] = keys[i];
    splat_positions[i] = corner / (num_dims + 1);
    splat_weights[i] = weights[corner];
  }
}

// The sort works where the table was, which is not read any more.
struct TableOrSort {
  int64_t num_slots;
  unsigned long long* slots;  // [num_slots]
  SortWorkspace sort;

  TableOrSort(Workspace& workspace, int64_t num_pairs)
      : TableOrSort(num_pairs, workspace.take<char>(bytes(num_pairs))) {}

 private:
  TableOrSort(int64_t num_pairs, char* memory)
      : num_slots(2 * num_pairs),
        slots(reinterpret_cast<unsigned long long*>(memory)),
        sort(sort_in(memory, num_pairs)) {}

  static SortWorkspace sort_in(char* memory, int64_t num_pairs) {
    Workspace workspace = memory == nullptr ? Workspace() : Workspace(memory, bytes(num_pairs));
    return SortWorkspace(workspace, num_pairs);
  }
  static int64_t bytes(int64_t num_pairs) {
    Workspace of_sort;
    SortWorkspace(of_sort, num_pairs);
    const int64_t of_table = 2 * num_pairs * static_cast<int64_t>(sizeof(unsigned long long));
    return std::max(of_sort.used(), of_table);
  }
};

struct LatticeWorkspace {
  CoordinateScratch scratch = {};
  int32_t* origins;        // [N, d]
  uint8_t* ranks;          // [N, d + 1]
  int32_t* numbers;        // [P]
  int32_t* point_corners;  // [P]
  int32_t* tile_sums;
  TableOrSort table_or_sort;

  LatticeWorkspace(Workspace& workspace, int64_t N, int64_t d)
      : origins(workspace.take<int32_t>(N * d)),
        ranks(workspace.take<uint8_t>(N * (d + 1))),
        numbers(workspace.take<int32_t>(N * (d + 1))),
        point_corners(workspace.take<int32_t>(N * (d + 1))),
        tile_sums(workspace.take<int32_t>(num_scan_tiles(N * (d + 1)))),
        table_or_sort(workspace, N * (d + 1)) {
    if (has_static_dims(d)) return;
    scratch.elevated = workspace.take<float>(N * (d + 1));
    scratch.offset = workspace.take<float>(N * (d + 1));
    scratch.rank = workspace.take<int32_t>(N * (d + 1));
  }

  CornerTable table(const PermutohedralLattice& lattice) const {
    return {{static_cast<int>(lattice.num_dims), origins, ranks},
            table_or_sort.num_slots,
            table_or_sort.slots};
  }
};

template <class Kernel, class... Arguments>
void launch_threads(const char* name, int64_t threads, const ExecutionContext& ctx, Kernel kernel,
                    const Arguments&... arguments) {
  launch(name, kernel, grid_size(threads, kThreadsPerBlock), kThreadsPerBlock, 0, ctx.stream,
         arguments...);
}

void launch_place(const float* features, const PermutohedralLattice& lattice,
                  const LatticeWorkspace& workspace, void* stream) {
  const auto call = [&](auto kernel) {
    launch("place", kernel, grid_size(lattice.num_values, kThreadsPerBlock), kThreadsPerBlock, 0,
           stream, features, lattice.num_values, static_cast<int>(lattice.num_dims),
           Embedding(lattice.num_dims), workspace.scratch, workspace.origins, workspace.ranks,
           lattice.weights);
  };
  switch (lattice.num_dims) {
    case 2: return call(place_kernel<2>);
    case 3: return call(place_kernel<3>);
    case 5: return call(place_kernel<5>);
    default: return call(place_kernel<0>);
  }
}

}  // namespace

int64_t permutohedral_lattice_workspace(int64_t num_values, int64_t num_dims) {
  Workspace workspace;
  LatticeWorkspace(workspace, num_values, num_dims);
  return workspace.used();
}

void permutohedral_points(const float* features, const PermutohedralLattice& lattice,
                          const ExecutionContext& ctx) {
  Workspace memory(ctx.workspace, ctx.workspace_bytes);
  const LatticeWorkspace workspace(memory, lattice.num_values, lattice.num_dims);
  const CornerTable table = workspace.table(lattice);
  const int64_t P = lattice.num_pairs();
  check(cudaMemsetAsync(table.slots, 0xff, table.num_slots * sizeof(*table.slots),
                        static_cast<cudaStream_t>(ctx.stream)),
        "permutohedral_points");
  launch_place(features, lattice, workspace, ctx.stream);
  launch_threads("insert", P, ctx, insert_kernel, table, P, lattice.vertices);
  launch_threads("first_corners", P, ctx, first_corners_kernel, table, P, lattice.vertices,
                 workspace.numbers);
  exclusive_scan(workspace.numbers, P, workspace.tile_sums, lattice.num_points, ctx.stream);
  launch_threads("number", P, ctx, number_kernel, workspace.numbers, P, workspace.point_corners,
                 lattice.vertices);
}

void permutohedral_lattice(const PermutohedralLattice& lattice, const ExecutionContext& ctx) {
  Workspace memory(ctx.workspace, ctx.workspace_bytes);
  const LatticeWorkspace workspace(memory, lattice.num_values, lattice.num_dims);
  const int64_t P = lattice.num_pairs();
  launch_threads("neighbours", lattice.max_points * (lattice.num_dims + 1), ctx, neighbours_kernel,
                 workspace.table(lattice), lattice.max_points, lattice.num_points,
                 workspace.point_corners, workspace.numbers, lattice.neighbours);
  const SortWorkspace& sort = workspace.table_or_sort.sort;
  const int sorted = sort_positions(sort, lattice.vertices, P, lattice.max_points, ctx.stream);
  launch_threads("splat_order", P, ctx, splat_order_kernel, sort.keys[sorted], sort.values[sorted],
                 P, static_cast<int>(lattice.num_dims), lattice.weights, lattice.splat_points,
                 lattice.splat_positions, lattice.splat_weights);
}

}  // namespace deepcrf::cuda
