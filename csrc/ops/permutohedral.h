// The permutohedral lattice (Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the
// Permutohedral Lattice", 2010): a Gaussian filter over points in d dimensions whose cost is linear
// in both. Values are splatted onto the vertices of the simplex around each point, blurred along
// the d + 1 axes of the lattice, and sliced back (deepcrf_ext/ops/permutohedral_filter.py).
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/dtypes.h"
#include "core/host_device.h"

namespace deepcrf {

constexpr int64_t kMaxLatticeDims = 255;

// Values a block of a CPU lattice: the largest power of two, at most 8192, whose vertices 16 bits
// can number.
inline int64_t lattice_block_size(int64_t num_dims) {
  int64_t size = 8192;
  while (size * (num_dims + 1) > 65536) size /= 2;
  return size;
}

// The arrays of a CPU lattice whose sizes are known only once it is built.
struct LatticePoints {
  int64_t num_points = 0;  // M
  std::vector<int64_t> block_offsets;
  std::vector<int32_t> entry_points;
  std::vector<int64_t> point_offsets;
  std::vector<int32_t> point_entries;
  std::vector<int32_t> neighbours;
};

namespace cpu {

// How the CPU keeps a lattice. The N positions are cut into blocks of `block_size`, and each block
// numbers the lattice points it touches for itself: 16 bits name a vertex, a block's vertices stay
// in the cache, and no two threads write the same memory.
struct PermutohedralLattice {
  int64_t num_values;            // N
  int64_t num_dims;              // d
  int64_t num_points;            // M
  const int16_t* vertices;       // [N, d + 1], uint16 bits: position in the block's entries
  const float* weights;          // [N, d + 1], barycentric
  const int64_t* block_offsets;  // [blocks + 1], the entries of each block
  const int32_t* entry_points;   // [entries], the lattice point of each
  const int64_t* point_offsets;  // [M + 1]
  const int32_t* point_entries;  // [entries], the entries of each lattice point, in order
  const int32_t* neighbours;     // [d + 1, M, 2], along each axis; M where there is none
};

// Throws Error where a feature is not finite or too large to place.
void permutohedral_lattice(const float* features,  // [d, N], in standard deviations
                           int64_t num_values, int64_t num_dims,
                           int16_t* vertices,  // [N, d + 1]
                           float* weights,     // [N, d + 1]
                           LatticePoints* points, const ExecutionContext& ctx);

// Splat, blur and slice. `transposed` blurs along the axes in reverse order, which is the transpose
// of the filter as a matrix.
void permutohedral_filter(const PermutohedralLattice& lattice, DType dtype, int64_t num_channels,
                          const void* values,  // [N, C]
                          bool transposed,
                          void* filtered,  // [N, C]
                          const ExecutionContext& ctx);

}  // namespace cpu

namespace cuda {

// How CUDA keeps a lattice. Its points are numbered first; the caller reads back how many there
// are, M, and makes room for those. While a CUDA graph is captured nothing can be read, and replays
// may have other numbers: there the room is for as many as N positions can have, P = N * (d + 1).
// Rows beyond M are never read.
struct PermutohedralLattice {
  int64_t num_values;        // N
  int64_t num_dims;          // d
  int64_t max_points;        // M, or any number from there to P
  int32_t* num_points;       // [1], M; points are numbered in the order of their first pair
  int32_t* vertices;         // [N, d + 1], the lattice point of each pair
  float* weights;            // [N, d + 1], barycentric
  int32_t* splat_points;     // [P], the pairs by lattice point, then position: their points,
  int32_t* splat_positions;  // [P], positions
  float* splat_weights;      // [P], and weights
  int32_t* neighbours;       // [d + 1, max_points, 2], along each axis; -1 where there is none

  DEEPCRF_HOST_DEVICE int64_t num_pairs() const { return num_values * (num_dims + 1); }  // P
};

// A position whose features are not finite or too large to place gets weights of NaN, which reach
// all that is filtered with it.
int64_t permutohedral_lattice_workspace(int64_t num_values, int64_t num_dims);
// Fills num_points, vertices and weights; max_points may still be 0.
void permutohedral_points(const float* features,  // [d, N], in standard deviations
                          const PermutohedralLattice& lattice, const ExecutionContext& ctx);
// Fills the other arrays, from those and from what permutohedral_points left in the workspace.
void permutohedral_lattice(const PermutohedralLattice& lattice, const ExecutionContext& ctx);

// As on the CPU.
int64_t permutohedral_filter_workspace(const PermutohedralLattice& lattice, DType dtype,
                                       int64_t num_channels);
void permutohedral_filter(const PermutohedralLattice& lattice, DType dtype, int64_t num_channels,
                          const void* values,  // [N, C]
                          bool transposed,
                          void* filtered,  // [N, C]
                          const ExecutionContext& ctx);

}  // namespace cuda

}  // namespace deepcrf
