#include "ops/mean_field.h"

#include "cpu/dispatch.h"
#include "cpu/mean_field.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

void mean_field(const std::vector<GraphView>& graphs,
                const std::vector<AnyFactoredPotential>& potentials,
                const MeanFieldArguments& arguments, const ExecutionContext& ctx) {
  dispatch_native_floating(arguments.dtype, "unary", [&](auto tag) {
    run_mean_field<MessageReceiver<decltype(tag)>>(graphs, potentials, arguments, ctx.num_threads);
  });
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(mean_field)
DEEPCRF_DECLARE_TILES(mean_field)

void mean_field(const std::vector<GraphView>& graphs,
                const std::vector<AnyFactoredPotential>& potentials,
                const MeanFieldArguments& arguments, const ExecutionContext& ctx) {
  [[maybe_unused]] const int summands =
      potentials.empty() ? 0 : tile_summands(potentials[0], arguments.precision);
  DEEPCRF_SELECT_TILES(summands, mean_field)(graphs, potentials, arguments, ctx);
}

}  // namespace deepcrf::cpu
#endif
