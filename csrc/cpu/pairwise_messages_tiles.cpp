// Messages and their gradient by matrix tiles.
#include "cpu/dispatch.h"
#include "cpu/message_parts.h"
#include "cpu/tile_message_gradient.h"
#include "cpu/tile_messages.h"
#include "ops/pairwise_messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx) {
  const auto run = tile_summands(potential, arguments.precision) == 2
                       ? receive_all<TileReceiver<2>>
                       : receive_all<TileReceiver<1>>;
  run(graph, potential, static_cast<const float*>(arguments.marginals),
      static_cast<float*>(arguments.messages), ctx.num_threads);
}

void pairwise_messages_factored_backward(const GraphView& graph,
                                         const AnyFactoredPotential& potential,
                                         const MessageGradientArguments& arguments,
                                         const AnyFactoredGradient& gradient,
                                         const ExecutionContext& ctx) {
  const auto run = tile_summands(potential, arguments.precision) == 2 ? tile_messages_backward<2>
                                                                      : tile_messages_backward<1>;
  run(graph, potential, arguments, gradient, ctx.num_threads);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
