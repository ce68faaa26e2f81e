// Expected pairwise energies at the nodes (deepcrf_ext/ops/pairwise_messages.py):
//   m_p[k] = sum_(p,q) sum_j V_pq(k, j) Q_q[j] + sum_(q,p) sum_j V_qp(j, k) Q_q[j].
#pragma once

#include "core/context.h"
#include "core/graph_view.h"
#include "ops/factored_potential.h"
#include "ops/table_potential.h"

namespace deepcrf {

// Marginals and messages are of the accumulator of the potential's dtype, as are the gradients of a
// factored one.
struct MessageArguments {
  const void* marginals;  // [N, K]
  void* messages;         // [N, K]
  MatmulPrecision precision;
};

// dL/dmarginals is not here: it is pairwise_messages of grad_messages.
struct MessageGradientArguments {
  int64_t num_messages;       // M: the gradient is the sum over so many messages
  const void* marginals;      // [M, N, K]
  const void* grad_messages;  // [M, N, K]
  MatmulPrecision precision;  // of the CPU's products
};

namespace cpu {
void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx);
void pairwise_messages_factored_backward(const GraphView& graph,
                                         const AnyFactoredPotential& potential,
                                         const MessageGradientArguments& arguments,
                                         const AnyFactoredGradient& gradient,
                                         const ExecutionContext& ctx);
void pairwise_messages_table(const GraphView& graph, const AnyTablePotential& potential,
                             const MessageArguments& arguments, const ExecutionContext& ctx);
void pairwise_messages_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                      const MessageGradientArguments& arguments,
                                      void* grad_energies,  // [E, K, K]
                                      const ExecutionContext& ctx);
}  // namespace cpu

namespace cuda {
void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx);
void pairwise_messages_table(const GraphView& graph, const AnyTablePotential& potential,
                             const MessageArguments& arguments, const ExecutionContext& ctx);
void pairwise_messages_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                      const MessageGradientArguments& arguments,
                                      void* grad_energies,  // [E, K, K]
                                      const ExecutionContext& ctx);

// Bytes of ctx.workspace.
int64_t pairwise_messages_factored_workspace(const GraphView& graph,
                                             const AnyFactoredPotential& potential,
                                             const MessageArguments& arguments);
int64_t pairwise_messages_table_workspace(const GraphView& graph,
                                          const AnyTablePotential& potential,
                                          const MessageArguments& arguments);
}  // namespace cuda

}  // namespace deepcrf
