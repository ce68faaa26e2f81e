// Permutohedral lattices as the Python operators pass them: tuples of tensors, in a fixed order.
#pragma once

#include <limits>

#include "bindings/arguments.h"
#include "ops/permutohedral.h"

namespace deepcrf {

// Checks that a lattice of N positions in d dimensions can be numbered.
inline void expect_lattice_size(int64_t N, int64_t d, const char* name) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  DEEPCRF_CHECK(d > 0 && d <= kMaxLatticeDims && N > 0 && N <= kMost / (d + 1), name,
                ": got d = ", d, ", N = ", N, ", must be 1 to ", kMaxLatticeDims,
                ", and N > 0 with N * (d + 1) < 2^31");
}

template <class Lattice>
Lattice lattice_view(const py::tuple& tensors, const Device& device);

// (vertices, weights, block_offsets, entry_points, point_offsets, point_entries, neighbours)
template <>
inline cpu::PermutohedralLattice lattice_view(const py::tuple& tensors, const Device& device) {
  expect_count(tensors, 7, "lattice");
  const Tensor vertices(tensors[0], "vertices");
  const Tensor weights(tensors[1], "weights");
  const Tensor block_offsets(tensors[2], "block_offsets");
  const Tensor entry_points(tensors[3], "entry_points");
  const Tensor point_offsets(tensors[4], "point_offsets");
  const Tensor point_entries(tensors[5], "point_entries");
  const Tensor neighbours(tensors[6], "neighbours");
  vertices.expect_device(device).expect_shape({-1, -1});
  const int64_t N = vertices.size(0), d = vertices.size(1) - 1;
  expect_lattice_size(N, d, "vertices");
  const int64_t block = lattice_block_size(d);
  point_offsets.expect_device(device).expect_shape({-1});
  entry_points.expect_device(device).expect_shape({-1});
  const int64_t M = point_offsets.size(0) - 1;
  weights.expect_device(device).expect_shape({N, d + 1});
  block_offsets.expect_device(device).expect_shape({(N + block - 1) / block + 1});
  point_entries.expect_device(device).expect_shape({entry_points.size(0)});
  neighbours.expect_device(device).expect_shape({d + 1, M, 2});
  return {N,
          d,
          M,
          vertices.data<int16_t>(),
          weights.data<float>(),
          block_offsets.data<int64_t>(),
          entry_points.data<int32_t>(),
          point_offsets.data<int64_t>(),
          point_entries.data<int32_t>(),
          neighbours.data<int32_t>()};
}

// (num_points, vertices, weights, splat_points, splat_positions, splat_weights, neighbours)
template <>
inline cuda::PermutohedralLattice lattice_view(const py::tuple& tensors, const Device& device) {
  expect_count(tensors, 7, "lattice");
  const Tensor num_points(tensors[0], "num_points");
  const Tensor vertices(tensors[1], "vertices");
  const Tensor weights(tensors[2], "weights");
  const Tensor splat_points(tensors[3], "splat_points");
  const Tensor splat_positions(tensors[4], "splat_positions");
  const Tensor splat_weights(tensors[5], "splat_weights");
  const Tensor neighbours(tensors[6], "neighbours");
  num_points.expect_device(device).expect_shape({1});
  vertices.expect_device(device).expect_shape({-1, -1});
  const int64_t N = vertices.size(0), d = vertices.size(1) - 1;
  expect_lattice_size(N, d, "vertices");
  const int64_t P = N * (d + 1);
  weights.expect_device(device).expect_shape({N, d + 1});
  splat_points.expect_device(device).expect_shape({P});
  splat_positions.expect_device(device).expect_shape({P});
  splat_weights.expect_device(device).expect_shape({P});
  neighbours.expect_device(device).expect_shape({d + 1, -1, 2});
  return {N,
          d,
          neighbours.size(1),
          num_points.output<int32_t>(),
          vertices.output<int32_t>(),
          weights.output<float>(),
          splat_points.output<int32_t>(),
          splat_positions.output<int32_t>(),
          splat_weights.output<float>(),
          neighbours.output<int32_t>()};
}

}  // namespace deepcrf
