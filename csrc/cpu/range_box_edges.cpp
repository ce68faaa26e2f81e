#include "ops/range_box_edges.h"

#include <algorithm>

#include "cpu/dispatch.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

// Writes first, first + 1, ... but for the excluded value (none: outside of the run).
int32_t* write_run(int32_t* out, int32_t first, int32_t count, int32_t excluded) {
  const int32_t before = excluded - first;
  if (before < 0 || before >= count) {
    for (int32_t i = 0; i < count; ++i) out[i] = first + i;
    return out + count;
  }
  for (int32_t i = 0; i < before; ++i) out[i] = first + i;
  for (int32_t i = before; i < count - 1; ++i) out[i] = first + i + 1;
  return out + count - 1;
}

// Writes the positions of the edges into (row, column) from its sources on one row, left to right:
// RangeBoxGrid::edge_position, its sums over columns carried along.
int64_t* write_positions(int64_t* out, const RangeBoxGrid& grid, int64_t source_row, int64_t row,
                         int64_t column) {
  const AxisRange sources = grid.reversed().columns;
  const int64_t first = sources.first(column);
  const int64_t end = first + sources.count(column);
  const int64_t row_count = grid.rows.count(source_row);
  const int64_t rows_skipped = row - grid.rows.first(source_row);
  const int64_t excluded_step = grid.contains_origin() ? 1 : 0;
  int64_t offset = grid.row_offset(source_row, first);
  for (int64_t x = first; x < end; ++x) {
    const int64_t column_count = grid.columns.count(x);
    const bool after_origin = row > source_row || (row == source_row && column > x);
    const int64_t rank = rows_skipped * column_count + (column - grid.columns.first(x)) -
                         (after_origin ? excluded_step : 0);
    if (row != source_row || column != x) *out++ = offset + rank;
    offset += row_count * column_count - excluded_step;
  }
  return out;
}

}  // namespace

void range_box_edges(const RangeBoxGrid& grid, const RangeBoxEdges& edges,
                     const ExecutionContext& ctx) {
  const RangeBoxGrid reverse = grid.reversed();
  const int64_t width = grid.columns.size;
  const int64_t num_nodes = grid.num_nodes();

#pragma omp parallel for schedule(static) num_threads(ctx.num_threads)
  for (int64_t node = 0; node < num_nodes; ++node) {
    const int64_t row = node / width;
    const int64_t column = node % width;

    edges.row_offsets[node] = grid.row_offset(row, column);
    int32_t* target = edges.targets + edges.row_offsets[node];
    const int64_t first_row = grid.rows.first(row);
    for (int64_t y = first_row; y < first_row + grid.rows.count(row); ++y) {
      target =
          write_run(target, static_cast<int32_t>(y * width + grid.columns.first(column)),
                    static_cast<int32_t>(grid.columns.count(column)), static_cast<int32_t>(node));
    }
    std::fill(edges.sources + edges.row_offsets[node], edges.sources + (target - edges.targets),
              static_cast<int32_t>(node));

    edges.reverse_row_offsets[node] = reverse.row_offset(row, column);
    const int64_t first_in = edges.reverse_row_offsets[node];
    int32_t* source = edges.reverse_sources + first_in;
    int64_t* position = edges.reverse_edges + first_in;
    const int64_t first_source_row = reverse.rows.first(row);
    for (int64_t y = first_source_row; y < first_source_row + reverse.rows.count(row); ++y) {
      source = write_run(source, static_cast<int32_t>(y * width + reverse.columns.first(column)),
                         static_cast<int32_t>(reverse.columns.count(column)),
                         static_cast<int32_t>(node));
      position = write_positions(position, grid, y, row, column);
    }
  }
  edges.row_offsets[num_nodes] = grid.row_offset(grid.rows.size, 0);
  edges.reverse_row_offsets[num_nodes] = reverse.row_offset(grid.rows.size, 0);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(range_box_edges)

void range_box_edges(const RangeBoxGrid& grid, const RangeBoxEdges& edges,
                     const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(range_box_edges)(grid, edges, ctx);
}

}  // namespace deepcrf::cpu
#endif
