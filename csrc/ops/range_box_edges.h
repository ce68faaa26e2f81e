// Both directions of the graph of a range box (deepcrf_ext/ops/range_box_edges.py).
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/range_box.h"

namespace deepcrf {

// N = height * width nodes in row-major order, E edges sorted by (source, target).
struct RangeBoxEdges {
  int64_t* row_offsets;          // [N + 1]
  int32_t* targets;              // [E]
  int64_t* reverse_row_offsets;  // [N + 1]
  int32_t* reverse_sources;      // [E], sorted by (target, source)
  int64_t* reverse_edges;        // [E], position of each in-edge in targets
  int32_t* sources;              // [E], the other end of each of targets
};

namespace cpu {
void range_box_edges(const RangeBoxGrid& grid, const RangeBoxEdges& edges,
                     const ExecutionContext& ctx);
}
namespace cuda {
void range_box_edges(const RangeBoxGrid& grid, const RangeBoxEdges& edges,
                     const ExecutionContext& ctx);
}

}  // namespace deepcrf
