#include "ops/range_box_edges.h"

#include "cuda/launch.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

namespace {

// One warp a node: its lanes walk the node's clipped box, once for its out-edges, once for its
// in-edges. The last "node", num_nodes, has no box: it writes the closing row offsets.
__global__ void range_box_edges_kernel(RangeBoxGrid grid, RangeBoxEdges edges) {
  const RangeBoxGrid reverse = grid.reversed();
  const int64_t width = grid.columns.size;
  const int64_t num_nodes = grid.num_nodes();
  const int lane = lane_index();

  for (int64_t node = first_warp(); node <= num_nodes; node += num_warps()) {
    const int64_t row = node == num_nodes ? grid.rows.size : node / width;
    const int64_t column = node == num_nodes ? 0 : node % width;
    const int64_t out_offset = grid.row_offset(row, column);
    const int64_t in_offset = reverse.row_offset(row, column);
    if (lane == 0) {
      edges.row_offsets[node] = out_offset;
      edges.reverse_row_offsets[node] = in_offset;
    }
    if (node == num_nodes) continue;

    const int64_t out_columns = grid.columns.count(column);
    const int64_t out_count = grid.rows.count(row) * out_columns;
    for (int64_t i = lane; i < out_count; i += kWarpSize) {
      const int64_t target = (grid.rows.first(row) + i / out_columns) * width +
                             grid.columns.first(column) + i % out_columns;
      if (target == node) continue;
      const bool after_origin = grid.contains_origin() && target > node;
      const int64_t position = out_offset + i - (after_origin ? 1 : 0);
      edges.targets[position] = static_cast<int32_t>(target);
      edges.sources[position] = static_cast<int32_t>(node);
    }

    const int64_t in_columns = reverse.columns.count(column);
    const int64_t in_count = reverse.rows.count(row) * in_columns;
    for (int64_t i = lane; i < in_count; i += kWarpSize) {
      const int64_t source_row = reverse.rows.first(row) + i / in_columns;
      const int64_t source_column = reverse.columns.first(column) + i % in_columns;
      const int64_t source = source_row * width + source_column;
      if (source == node) continue;
      const bool after_origin = reverse.contains_origin() && source > node;
      const int64_t position = in_offset + i - (after_origin ? 1 : 0);
      edges.reverse_sources[position] = static_cast<int32_t>(source);
      edges.reverse_edges[position] = grid.edge_position(source_row, source_column, row, column);
    }
  }
}

}  // namespace

void range_box_edges(const RangeBoxGrid& grid, const RangeBoxEdges& edges,
                     const ExecutionContext& ctx) {
  launch("range_box_edges", range_box_edges_kernel, grid_size(grid.num_nodes() + 1, kWarpsPerBlock),
         kThreadsPerBlock, 0, ctx.stream, grid, edges);
}

}  // namespace deepcrf::cuda
