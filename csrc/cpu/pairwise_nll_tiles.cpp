// The piecewise loss of bfloat16 potentials by matrix tiles.
#include "cpu/factored_loss.h"
#include "cpu/tile_operands.h"
#include "ops/pairwise_nll.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

void factored_losses(const GraphView& graph, const AnyFactoredPotential& potential,
                     const EdgeLabels& labels, const void* edge_weight, void* losses,
                     const AnyFactoredGradient* gradient, int num_threads) {
  FactoredLoss<bfloat16, TileOperands>(graph, potential.as<bfloat16>(), labels,
                                       static_cast<const float*>(edge_weight),
                                       static_cast<float*>(losses), gradient, num_threads)
      .run();
}

}  // namespace

void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  factored_losses(graph, potential, labels, nullptr, losses, nullptr, ctx.num_threads);
}

void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    const EdgeLabels& labels, const void* edge_weight, void* losses,
                                    const AnyFactoredGradient& gradient,
                                    const ExecutionContext& ctx) {
  factored_losses(graph, potential, labels, edge_weight, losses, &gradient, ctx.num_threads);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
