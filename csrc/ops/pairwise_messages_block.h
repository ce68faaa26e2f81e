// The steps of the gradient of messages in a factored potential between matrix products, for a
// block of consecutive nodes (deepcrf_ext/ops/_pairwise_messages_blocks.py). CUDA only.
#pragma once

#include "core/context.h"
#include "core/graph_view.h"
#include "ops/factored_potential.h"

namespace deepcrf {

// Nodes first..first+count-1.
struct NodeBlock {
  int64_t first;
  int64_t count;  // B
};

// Of coefficients, and of A and B, [B, 2K, D]: bfloat16 of bfloat16, else the accumulator.
inline DType block_dtype(DType dtype) {
  return dtype == DType::bfloat16 ? dtype : accumulator_dtype(dtype);
}

namespace cuda {
// Columns of the coefficients, which hold the marginals of a node, the gradient of its messages,
// and zeros, in the order in which the kernels of this dtype and precision read them.
int64_t message_columns(DType dtype, MatmulPrecision precision, int64_t num_labels);
void message_coefficients(DType dtype, MatmulPrecision precision, int64_t num_nodes,
                          int64_t num_labels,
                          const void* marginals,      // [N, K]
                          const void* grad_messages,  // [N, K]
                          void* coefficients,         // [N, message_columns()]
                          const ExecutionContext& ctx);

// A: the coefficients of the targets of each node times the hidden vectors of its edges, summed.
void message_aggregates(const GraphView& graph, const AnyFactoredPotential& potential,
                        MatmulPrecision precision, const NodeBlock& block,
                        const void* coefficients,  // [N, message_columns()]
                        void* aggregates,          // [B, 2K, D]
                        void* coefficient_sums,    // [B, 2K], of the same without hidden vectors
                        const ExecutionContext& ctx);

// The gradient in the source of each node, or in its target, from B: the coefficients of the
// node itself times the weight.
void message_node_gradient(const GraphView& graph, const AnyFactoredPotential& potential,
                           MatmulPrecision precision, const NodeBlock& block,
                           const void* coefficients,  // [N, message_columns()]
                           const void* projections,   // [B, 2K, D]
                           bool of_targets,
                           void* gradient,  // [N, D], this block's are written
                           const ExecutionContext& ctx);
}  // namespace cuda

}  // namespace deepcrf
