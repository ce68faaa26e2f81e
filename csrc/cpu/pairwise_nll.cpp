#include "ops/pairwise_nll.h"

#include "cpu/bfloat_operands.h"
#include "cpu/dispatch.h"
#include "cpu/factored_loss.h"
#include "cpu/table_loss.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

// The loss for potentials of dtype In: bfloat16 is multiplied as it is where the processor can, and
// widened to float elsewhere.
template <typename In>
struct LossOf {
  using type = FactoredLoss<In, FloatOperands<In>>;
};
template <>
struct LossOf<bfloat16> {
#if defined(__AVX512BF16__)
  using type = FactoredLoss<bfloat16, BfloatOperands>;
#else
  using type = FactoredLoss<bfloat16, FloatOperands<float>>;
#endif
};

void factored_losses(const GraphView& graph, const AnyFactoredPotential& potential,
                     const EdgeLabels& labels, const void* edge_weight, void* losses,
                     const AnyFactoredGradient* gradient, int num_threads) {
  const auto run = [&](auto tag) {
    using In = decltype(tag);
    using Loss = typename LossOf<In>::type;
    using T = typename Loss::T;
    Loss(graph, potential.as<In>(), labels, static_cast<const T*>(edge_weight),
         static_cast<T*>(losses), gradient, num_threads)
        .run();
  };
  if (potential.dtype == DType::bfloat16) return run(bfloat16{});
  dispatch_native_floating(potential.dtype, "potential", run);
}

// One after another, so that the sum does not depend on the number of threads; an edge takes no
// time beside its K * K energies.
template <typename T>
void reduce(const GraphView& graph, const EdgeLabels& labels, const T* losses, bool mean, T* value,
            T* factor) {
  double sum = 0;
  int64_t valid = 0;
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    if (labels.labels[p] == labels.ignore_index) continue;
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      valid += labels.labels[graph.targets[e]] != labels.ignore_index;
      sum += losses[e];
    }
  }
  const double count = mean && valid > 0 ? static_cast<double>(valid) : 1;
  *value = static_cast<T>(sum / count);
  *factor = static_cast<T>(1 / count);
}

}  // namespace

void reduce_losses(const GraphView& graph, const EdgeLabels& labels, DType dtype,
                   const void* losses, bool mean, void* value, void* factor,
                   const ExecutionContext&) {
  dispatch_native_floating(dtype, "losses", [&](auto tag) {
    using T = decltype(tag);
    reduce(graph, labels, static_cast<const T*>(losses), mean, static_cast<T*>(value),
           static_cast<T*>(factor));
  });
}

void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           MatmulPrecision, const EdgeLabels& labels, void* losses,
                           const ExecutionContext& ctx) {
  factored_losses(graph, potential, labels, nullptr, losses, nullptr, ctx.num_threads);
}

void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    MatmulPrecision, const EdgeLabels& labels,
                                    const void* edge_weight, void* losses,
                                    const AnyFactoredGradient& gradient,
                                    const ExecutionContext& ctx) {
  factored_losses(graph, potential, labels, edge_weight, losses, &gradient, ctx.num_threads);
}

void pairwise_nll_table(const GraphView& graph, const AnyTablePotential& potential,
                        const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  pairwise_nll_table_backward(graph, potential, labels, nullptr, losses, nullptr, ctx);
}

void pairwise_nll_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                 const EdgeLabels& labels, const void* edge_weight, void* losses,
                                 void* grad_energies, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using In = decltype(tag);
    using T = Accumulator<In>;
    table_losses(graph, potential.num_labels, static_cast<const In*>(potential.energies), labels,
                 static_cast<const T*>(edge_weight), static_cast<T*>(losses),
                 static_cast<In*>(grad_energies), ctx.num_threads);
  });
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(reduce_losses)
DEEPCRF_DECLARE_ISAS(pairwise_nll_factored)
DEEPCRF_DECLARE_ISAS(pairwise_nll_factored_backward)
DEEPCRF_DECLARE_TILES(pairwise_nll_factored)
DEEPCRF_DECLARE_TILES(pairwise_nll_factored_backward)
DEEPCRF_DECLARE_ISAS(pairwise_nll_table)
DEEPCRF_DECLARE_ISAS(pairwise_nll_table_backward)

void reduce_losses(const GraphView& graph, const EdgeLabels& labels, DType dtype,
                   const void* losses, bool mean, void* value, void* factor,
                   const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(reduce_losses)(graph, labels, dtype, losses, mean, value, factor, ctx);
}

void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           MatmulPrecision precision, const EdgeLabels& labels, void* losses,
                           const ExecutionContext& ctx) {
  DEEPCRF_SELECT_TILES(tile_summands(potential, precision), pairwise_nll_factored)
  (graph, potential, precision, labels, losses, ctx);
}

void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    MatmulPrecision precision, const EdgeLabels& labels,
                                    const void* edge_weight, void* losses,
                                    const AnyFactoredGradient& gradient,
                                    const ExecutionContext& ctx) {
  DEEPCRF_SELECT_TILES(tile_summands(potential, precision), pairwise_nll_factored_backward)
  (graph, potential, precision, labels, edge_weight, losses, gradient, ctx);
}

void pairwise_nll_table(const GraphView& graph, const AnyTablePotential& potential,
                        const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_nll_table)(graph, potential, labels, losses, ctx);
}

void pairwise_nll_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                 const EdgeLabels& labels, const void* edge_weight, void* losses,
                                 void* grad_energies, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_nll_table_backward)
  (graph, potential, labels, edge_weight, losses, grad_energies, ctx);
}

}  // namespace deepcrf::cpu
#endif
