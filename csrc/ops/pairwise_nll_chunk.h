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
// Rows of the products: the weight of a pair of labels, its bias, then zeros; rows of zeros.
void pack_weight(const AnyFactoredPotential& potential,
                 int64_t num_rows,  // at least K * K
                 int64_t pitch,     // at least D + 1
                 void* rows,        // [num_rows, pitch]
                 const ExecutionContext& ctx);

// The gradients of weight and bias from that of the rows.
void unpack_weight(DType dtype, const void* rows,  // [K * K and more, pitch], float32 or float64
                   int64_t num_labels, int64_t num_features, int64_t pitch,
                   void* weight,  // [K, K, D]
                   void* bias,    // [K, K]
                   const ExecutionContext& ctx);

// The other rows of the products: relu(source_p + target_q), a one that multiplies the bias, then
// zeros. And where they are positive, a byte for each 16 bytes of features.
void edge_hidden(const GraphView& graph, const AnyFactoredPotential& potential,
                 const EdgeChunk& chunk,
                 int64_t pitch,   // at least D + 1
                 void* hidden,    // [C, pitch]
                 uint8_t* masks,  // [C, D * itemsize / 16, rounded up]
                 const ExecutionContext& ctx);

// Losses from energies. With `differentiate`, the energies become the gradient of
// sum_e edge_weight[e] * loss[e], zeros past K * K.
void chunk_losses(const GraphView& graph, DType dtype, int64_t num_labels,
                  int64_t pitch,  // at least K * K
                  const EdgeLabels& labels, const EdgeChunk& chunk,
                  const void* edge_weight,  // [E], or null: all ones
                  void* energies,           // [C, pitch]
                  void* losses,             // [E], this chunk's are written
                  bool differentiate, const ExecutionContext& ctx);

// Sums the gradient of the hidden vectors, where these are positive, at both ends of their edges:
// the first chunk sets the sums, others add to them.
void reduce_edges(const GraphView& graph,
                  DType dtype,  // of grad_hidden
                  int64_t num_features, const EdgeChunk& chunk,
                  int64_t pitch,            // at least D; rows begin at multiples of 16 bytes
                  const void* grad_hidden,  // [C, pitch]
                  const uint8_t* masks,     // of edge_hidden
                  void* grad_source,        // [N, D], float64 for float64, else float32
                  void* grad_target,        // [N, D], likewise
                  const ExecutionContext& ctx);
}  // namespace cuda

}  // namespace deepcrf
