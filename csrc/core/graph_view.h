// A directed graph in compressed rows, both ways. Mirrors deepcrf_ext.EdgeGraph.
#pragma once

#include <cstdint>

namespace deepcrf {

struct GraphView {
  int64_t num_nodes;
  int64_t num_edges;
  const int64_t* row_offsets;          // [N + 1]
  const int32_t* targets;              // [E], sorted by (source, target)
  const int64_t* reverse_row_offsets;  // [N + 1]
  const int32_t* reverse_sources;      // [E], sorted by (target, source)
  const int64_t* reverse_edges;        // [E], position of each in-edge in targets
  const int32_t* sources;              // [E], the other end of each of targets
};

}  // namespace deepcrf
