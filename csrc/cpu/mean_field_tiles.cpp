// Mean field over bfloat16 potentials by matrix tiles.
#include "cpu/mean_field.h"
#include "cpu/tile_messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

void mean_field(const std::vector<GraphView>& graphs,
                const std::vector<AnyFactoredPotential>& potentials,
                const MeanFieldArguments& arguments, const ExecutionContext& ctx) {
  run_mean_field<TileReceiver>(graphs, potentials, arguments, ctx.num_threads);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
