// Piecewise loss of the edges (deepcrf_ext/ops/pairwise_nll.py):
//   loss of (p, q) = V_pq(y_p, y_q) + log sum_kj exp(-V_pq(k, j)), 0 where an end is ignored.
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

namespace cpu {
void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           const EdgeLabels& labels,
                           void* losses,  // [E]
                           const ExecutionContext& ctx);

// The loss and, in the same pass, the gradient of sum_e edge_weight[e] * loss[e].
void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    const EdgeLabels& labels,
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
}  // namespace cuda

}  // namespace deepcrf
