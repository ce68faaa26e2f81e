// The piecewise loss by matrix tiles.
#include "cpu/dispatch.h"
#include "cpu/factored_loss.h"
#include "cpu/tile_operands.h"
#include "ops/pairwise_nll.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

void factored_losses(const GraphView& graph, const AnyFactoredPotential& potential,
                     MatmulPrecision precision, const EdgeLabels& labels, const void* edge_weight,
                     void* losses, const AnyFactoredGradient* gradient, int num_threads) {
  const auto run = [&](auto summands, auto dtype) {
    using In = decltype(dtype);
    FactoredLoss<In, TileOperands<summands()>>(graph, potential.as<In>(), labels,
                                               static_cast<const float*>(edge_weight),
                                               static_cast<float*>(losses), gradient, num_threads)
        .run();
  };
  dispatch_tile_dtype(potential.dtype, [&](auto dtype) {
    if (tile_summands(potential, precision) == 2) {
      run(std::integral_constant<int, 2>{}, dtype);
    } else {
      run(std::integral_constant<int, 1>{}, dtype);
    }
  });
}

}  // namespace

void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           MatmulPrecision precision, const EdgeLabels& labels, void* losses,
                           const ExecutionContext& ctx) {
  factored_losses(graph, potential, precision, labels, nullptr, losses, nullptr, ctx.num_threads);
}

void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    MatmulPrecision precision, const EdgeLabels& labels,
                                    const void* edge_weight, void* losses,
                                    const AnyFactoredGradient& gradient,
                                    const ExecutionContext& ctx) {
  factored_losses(graph, potential, precision, labels, edge_weight, losses, &gradient,
                  ctx.num_threads);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
