// Messages over bfloat16 potentials by matrix tiles.
#include "cpu/tile_messages.h"
#include "ops/pairwise_messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx) {
  receive_all<TileReceiver>(graph, potential, static_cast<const float*>(arguments.marginals),
                            static_cast<float*>(arguments.messages), ctx.num_threads);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
