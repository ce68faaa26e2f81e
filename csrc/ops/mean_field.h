// Mean field over factored potentials (deepcrf_ext/ops/mean_field.py):
//   Q <- softmax(-unary), then `iterations` times Q <- softmax(-unary - sum of pairwise messages).
#pragma once

#include <vector>

#include "core/context.h"
#include "core/graph_view.h"
#include "ops/factored_potential.h"

namespace deepcrf {

struct MeanFieldArguments {
  DType dtype;  // of every potential; unary and marginals are of its accumulator
  int64_t num_nodes;
  int64_t num_labels;
  int64_t iterations;
  const void* unary;  // [N, K]
  void* marginals;    // [N, K]
  MatmulPrecision precision;
};

namespace cpu {
void mean_field(const std::vector<GraphView>& graphs,
                const std::vector<AnyFactoredPotential>& potentials,
                const MeanFieldArguments& arguments, const ExecutionContext& ctx);
}  // namespace cpu

namespace cuda {
void mean_field(const std::vector<GraphView>& graphs,
                const std::vector<AnyFactoredPotential>& potentials,
                const MeanFieldArguments& arguments, const ExecutionContext& ctx);

// Bytes of ctx.workspace.
int64_t mean_field_workspace(const std::vector<GraphView>& graphs,
                             const std::vector<AnyFactoredPotential>& potentials,
                             const MeanFieldArguments& arguments);
}  // namespace cuda

}  // namespace deepcrf
