// A permutohedral lattice as the Python operators pass it: a tuple of tensors, in a fixed order.
#pragma once

#include "bindings/arguments.h"
#include "ops/permutohedral.h"

namespace deepcrf {

// (vertices, weights, block_offsets, entry_points, point_offsets, point_entries, neighbours)
inline PermutohedralLattice permutohedral_lattice_view(const py::tuple& tensors,
                                                       const Device& device) {
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
  DEEPCRF_CHECK(N > 0 && d > 0, "vertices: got N = ", N, ", d = ", d, ", must be positive");
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

}  // namespace deepcrf
