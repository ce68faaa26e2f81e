// Piecewise loss of the edges (deepcrf_ext/ops/pairwise_nll.py):
//   loss of (p, q) = V_pq(y_p, y_q) + log sum_kj exp(-V_pq(k, j)), 0 where an end is ignored.
// Losses, their weights and sums are of the accumulator of the potential's dtype, as are the
// gradients of a factored one; the gradient of a table is of the table's dtype.
#pragma once

#include "core/context.h"
#include "core/graph_view.h"
#include "ops/factored_potential.h"
#include "ops/table_potential.h"

namespace deepcrf {

struct EdgeLabels {
  const int64_t* labels;  // [N], 0..K-1 or ignore_index
  int64_t ignore_index;
};

struct ScaledArray {
  const void* from;  // [size]
  void* to;          // [size]
  int64_t size;
};
struct ScaledArrays {
  static constexpr int kMost = 4;
  int count;
  ScaledArray arrays[kMost];
};

namespace cpu {
void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           MatmulPrecision precision, const EdgeLabels& labels,
                           void* losses,  // [E]
                           const ExecutionContext& ctx);

// The loss and, in the same pass, the gradient of sum_e edge_weight[e] * loss[e].
void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    MatmulPrecision precision, const EdgeLabels& labels,
                                    const void* edge_weight,  // [E], or null: all ones
                                    void* losses,             // [E]
                                    const AnyFactoredGradient& gradient,
                                    const ExecutionContext& ctx);

void pairwise_nll_table(const GraphView& graph, const AnyTablePotential& potential,
                        const EdgeLabels& labels,
                        void* losses,  // [E]
                        const ExecutionContext& ctx);

void pairwise_nll_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                 const EdgeLabels& labels,
                                 const void* edge_weight,  // [E], or null: all ones
                                 void* losses,             // [E]
                                 void* grad_energies,      // [E, K, K]
                                 const ExecutionContext& ctx);

// The sum of the losses, or with `mean` the mean over the edges without an ignored end, 0 where
// there is none; and the factor by which gradients of the sum become its own.
void reduce_losses(const GraphView& graph, const EdgeLabels& labels,
                   DType dtype,         // of the losses
                   const void* losses,  // [E]
                   bool mean,
                   void* value,   // []
                   void* factor,  // []
                   const ExecutionContext& ctx);
}  // namespace cpu

namespace cuda {
// Factored potentials: pairwise_nll_chunk.h.
void pairwise_nll_table(const GraphView& graph, const AnyTablePotential& potential,
                        const EdgeLabels& labels,
                        void* losses,  // [E]
                        const ExecutionContext& ctx);

void pairwise_nll_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                 const EdgeLabels& labels,
                                 const void* edge_weight,  // [E], or null: all ones
                                 void* losses,             // [E]
                                 void* grad_energies,      // [E, K, K]
                                 const ExecutionContext& ctx);

// The sum of the losses, or with `mean` the mean over the edges without an ignored end, 0 where
// there is none; and the factor by which gradients of the sum become its own.
void reduce_losses(const GraphView& graph, const EdgeLabels& labels,
                   DType dtype,         // of the losses
                   const void* losses,  // [E]
                   bool mean,
                   void* value,   // []
                   void* factor,  // []
                   const ExecutionContext& ctx);
// Bytes of ctx.workspace.
int64_t reduce_losses_workspace(int64_t num_edges);

// to = from * first * second of every array, rounded to `dtype`.
void scale_arrays(const ScaledArrays& arrays,
                  DType dtype,         // of `to`; the others are of its accumulator
                  const void* first,   // []
                  const void* second,  // []
                  const ExecutionContext& ctx);
}  // namespace cuda

}  // namespace deepcrf
