// Mean field by matrix tiles.
#include "cpu/dispatch.h"
#include "cpu/mean_field.h"
#include "cpu/tile_messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

void mean_field(const std::vector<GraphView>& graphs,
                const std::vector<AnyFactoredPotential>& potentials,
                const MeanFieldArguments& arguments, const ExecutionContext& ctx) {
  const auto run = tile_summands(potentials[0], arguments.precision) == 2
                       ? run_mean_field<TileReceiver<2>>
                       : run_mean_field<TileReceiver<1>>;
  run(graphs, potentials, arguments, ctx.num_threads);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
