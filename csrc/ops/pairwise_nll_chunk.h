// The steps of the piecewise loss between matrix products, for a chunk of C consecutive edges
// (deepcrf_ext/ops/_pairwise_nll_chunks.py). CUDA only.
#pragma once

#include "ops/pairwise_nll.h"

namespace deepcrf {

// Edges first..first+count-1.
struct EdgeChunk {
  int64_t first;
  int64_t count;  // C
};

namespace cuda {
// hidden = relu(source_p + target_q).
void edge_hidden(const GraphView& graph, const AnyFactoredPotential& potential,
                 const EdgeChunk& chunk,
                 void* hidden,  // [C, D]
                 const ExecutionContext& ctx);

// Losses from energies. With `differentiate`, the energies become the gradient of
// sum_e edge_weight[e] * loss[e].
void chunk_losses(const GraphView& graph, DType dtype, int64_t num_labels, const EdgeLabels& labels,
                  const EdgeChunk& chunk,
                  const void* edge_weight,  // [E], or null: all ones
                  void* energies,           // [C, K * K]
                  void* losses,             // [E], this chunk's are written
                  bool differentiate, const ExecutionContext& ctx);

// Adds the gradient of the hidden vectors, where these are positive, to both ends of their edges.
// Without `hidden`, the gradient is masked already.
void reduce_edges(const GraphView& graph, DType dtype, int64_t num_features, const EdgeChunk& chunk,
                  const void* hidden,       // [C, D], or null
                  const void* grad_hidden,  // [C, D]
                  void* grad_source,        // [N, D], float64 for float64, else float32
                  void* grad_target,        // [N, D], likewise
                  const ExecutionContext& ctx);
}  // namespace cuda

}  // namespace deepcrf
