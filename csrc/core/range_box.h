// The edges of a range box on a grid, all in closed form: node p = (row, column) is joined to every
// q = p + (dy, dx) inside the image with top <= dy <= bottom, left <= dx <= right, (dy, dx) != 0.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace deepcrf {

// Sum of clamp(t, 0, size) over all t <= last.
DEEPCRF_HOST_DEVICE inline int64_t clamped_sum(int64_t size, int64_t last) {
  if (last <= 0) return 0;
  if (last <= size) return last * (last + 1) / 2;
  return size * (size + 1) / 2 + size * (last - size);
}

// One axis of a box: position i reaches every j in [0, size) with low <= j - i <= high.
struct AxisRange {
  int64_t size;
  int64_t low;
  int64_t high;

  // First j that i reaches (meaningful where count(i) > 0).
  DEEPCRF_HOST_DEVICE int64_t first(int64_t i) const { return i + low > 0 ? i + low : 0; }

  // How many j i reaches.
  DEEPCRF_HOST_DEVICE int64_t count(int64_t i) const {
    const int64_t last = i + high < size - 1 ? i + high : size - 1;
    const int64_t length = last - first(i) + 1;
    return length > 0 ? length : 0;
  }

  // Sum of count(i') over 0 <= i' < i.
  DEEPCRF_HOST_DEVICE int64_t count_before(int64_t i) const {
    return clamped_sum(size, i + high) - clamped_sum(size, high) - clamped_sum(size, i + low - 1) +
           clamped_sum(size, low - 1);
  }
};

struct RangeBoxGrid {
  AxisRange rows;
  AxisRange columns;

  DEEPCRF_HOST_DEVICE int64_t num_nodes() const { return rows.size * columns.size; }

  DEEPCRF_HOST_DEVICE bool contains_origin() const {
    return rows.low <= 0 && rows.high >= 0 && columns.low <= 0 && columns.high >= 0;
  }

  // Edges of all nodes before (row, column) in row-major order: the CSR row offset of that node.
  DEEPCRF_HOST_DEVICE int64_t row_offset(int64_t row, int64_t column) const {
    const int64_t pairs = rows.count_before(row) * columns.count_before(columns.size) +
                          rows.count(row) * columns.count_before(column);
    return contains_origin() ? pairs - (row * columns.size + column) : pairs;
  }

  // Position of the edge (row, column) -> (target_row, target_column) among all edges.
  DEEPCRF_HOST_DEVICE int64_t edge_position(int64_t row, int64_t column, int64_t target_row,
                                            int64_t target_column) const {
    const int64_t rank = (target_row - rows.first(row)) * columns.count(column) +
                         (target_column - columns.first(column));
    const bool after_origin = target_row > row || (target_row == row && target_column > column);
    return row_offset(row, column) + rank - (contains_origin() && after_origin ? 1 : 0);
  }

  // The grid of the in-edges: sources of q are q - (dy, dx).
  DEEPCRF_HOST_DEVICE RangeBoxGrid reversed() const {
    return {{rows.size, -rows.high, -rows.low}, {columns.size, -columns.high, -columns.low}};
  }
};

}  // namespace deepcrf
