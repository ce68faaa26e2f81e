#include "ops/pairwise_messages.h"

#include "cpu/dispatch.h"
#include "cpu/message_gradient.h"
#include "cpu/message_parts.h"
#include "cpu/table_messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

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
    factored_messages_backward(graph, potential.as<T>(), arguments, gradient, ctx.num_threads);
  });
}

void pairwise_messages_table(const GraphView& graph, const AnyTablePotential& potential,
                             const MessageArguments& arguments, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using In = decltype(tag);
    using T = Accumulator<In>;
    table_messages(graph, potential.num_labels, static_cast<const In*>(potential.energies),
                   static_cast<const T*>(arguments.marginals), static_cast<T*>(arguments.messages),
                   ctx.num_threads);
  });
}

void pairwise_messages_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                      const MessageGradientArguments& arguments,
                                      void* grad_energies, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using In = decltype(tag);
    using T = Accumulator<In>;
    table_messages_backward(graph, potential.num_labels, arguments.num_messages,
                            static_cast<const T*>(arguments.marginals),
                            static_cast<const T*>(arguments.grad_messages),
                            static_cast<In*>(grad_energies), ctx.num_threads);
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
