#include "ops/pairwise_messages.h"

#include "cpu/dispatch.h"
#include "cpu/message_gradient.h"
#include "cpu/message_parts.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

template <typename T>
void table_messages(const GraphView& graph, int64_t num_labels,
                    const T* energies,   // [E, K, K]
                    const T* marginals,  // [N, K]
                    T* messages,         // [N, K]
                    int num_threads) {
  const int64_t K = num_labels;
#pragma omp parallel for schedule(dynamic, 16) num_threads(num_threads)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    T* message = messages + p * K;
    std::fill_n(message, K, T(0));
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      const T* q_marginals = marginals + graph.targets[e] * K;
      for (int64_t k = 0; k < K; ++k) {
        const T* row = energies + (e * K + k) * K;
        T sum = 0;
        for (int64_t j = 0; j < K; ++j) sum += row[j] * q_marginals[j];
        message[k] += sum;
      }
    }
    for (int64_t i = graph.reverse_row_offsets[p]; i < graph.reverse_row_offsets[p + 1]; ++i) {
      const T* q_marginals = marginals + graph.reverse_sources[i] * K;
      const T* table = energies + graph.reverse_edges[i] * K * K;
      for (int64_t j = 0; j < K; ++j) {
        for (int64_t k = 0; k < K; ++k) message[k] += table[j * K + k] * q_marginals[j];
      }
    }
  }
}

template <typename T>
void table_messages_backward(const GraphView& graph, int64_t num_labels, const T* marginals,
                             const T* grad_messages,
                             T* grad_energies,  // [E, K, K]
                             int num_threads) {
  const int64_t K = num_labels;
#pragma omp parallel for schedule(dynamic, 16) num_threads(num_threads)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      const int64_t q = graph.targets[e];
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t j = 0; j < K; ++j) {
          grad_energies[(e * K + k) * K + j] = grad_messages[p * K + k] * marginals[q * K + j] +
                                               marginals[p * K + k] * grad_messages[q * K + j];
        }
      }
    }
  }
}

}  // namespace

void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    receive_all<MessageReceiver<T>>(graph, potential, static_cast<const T*>(arguments.marginals),
                                    static_cast<T*>(arguments.messages), ctx.num_threads);
  });
}

void pairwise_messages_factored_backward(const GraphView& graph,
                                         const AnyFactoredPotential& potential,
                                         const MessageGradientArguments& arguments,
                                         const AnyFactoredGradient& gradient,
                                         const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    factored_messages_backward(graph, potential.as<T>(), static_cast<const T*>(arguments.marginals),
                               static_cast<const T*>(arguments.grad_messages), gradient,
                               ctx.num_threads);
  });
}

void pairwise_messages_table(const GraphView& graph, const AnyTablePotential& potential,
                             const MessageArguments& arguments, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    table_messages(graph, potential.num_labels, static_cast<const T*>(potential.energies),
                   static_cast<const T*>(arguments.marginals), static_cast<T*>(arguments.messages),
                   ctx.num_threads);
  });
}

void pairwise_messages_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                      const MessageGradientArguments& arguments,
                                      void* grad_energies, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    table_messages_backward(graph, potential.num_labels, static_cast<const T*>(arguments.marginals),
                            static_cast<const T*>(arguments.grad_messages),
                            static_cast<T*>(grad_energies), ctx.num_threads);
  });
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(pairwise_messages_factored)
DEEPCRF_DECLARE_TILES(pairwise_messages_factored)
DEEPCRF_DECLARE_ISAS(pairwise_messages_factored_backward)
DEEPCRF_DECLARE_TILES(pairwise_messages_factored_backward)
DEEPCRF_DECLARE_ISAS(pairwise_messages_table)
DEEPCRF_DECLARE_ISAS(pairwise_messages_table_backward)

void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_TILES(tile_summands(potential, arguments.precision), pairwise_messages_factored)
  (graph, potential, arguments, ctx);
}

void pairwise_messages_factored_backward(const GraphView& graph,
                                         const AnyFactoredPotential& potential,
                                         const MessageGradientArguments& arguments,
                                         const AnyFactoredGradient& gradient,
                                         const ExecutionContext& ctx) {
  DEEPCRF_SELECT_TILES(tile_summands(potential, arguments.precision),
                       pairwise_messages_factored_backward)
  (graph, potential, arguments, gradient, ctx);
}

void pairwise_messages_table(const GraphView& graph, const AnyTablePotential& potential,
                             const MessageArguments& arguments, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_messages_table)(graph, potential, arguments, ctx);
}

void pairwise_messages_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                      const MessageGradientArguments& arguments,
                                      void* grad_energies, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_messages_table_backward)
  (graph, potential, arguments, grad_energies, ctx);
}

}  // namespace deepcrf::cpu
#endif
