// The gradient of L = sum_p grad_p . m_p in a factored potential. As dL/dV_pq(k, j) =
// grad_p[k] Q_q[j] + Q_p[k] grad_q[j], every neighbour brings 2K coefficients c_q = (Q_q, grad_q):
//   dL/dW[k, j] = sum_p grad_p[k] A_p[j] + Q_p[k] A_p[K + j],   A_p[c] = sum_q c_q[c] h_pq,
//   dL/dh_pq    = sum_c c_q[c] B_p[c],   B_p[j] = sum_k grad_p[k] W[k, j],
//                                        B_p[K + j] = sum_k Q_p[k] W[k, j].
// Here are A, and the sums of dL/dh at the nodes; dL/dW and B are matrix products.
#include "cuda/launch.cuh"
#include "cuda/message_gradient_simt.cuh"
#include "cuda/message_gradient_tensor.cuh"
#include "ops/pairwise_messages_block.h"

namespace deepcrf::cuda {

namespace {

template <class T, bool = kOnTensorCores<T>>
struct Gradient {  // on CUDA cores
  using Coefficient = Accumulator<T>;
  using Layout = SimtGradientLayout<T>;
  static constexpr int kFeatures = kFeatureBlock<T>;
  static constexpr int kVector = deepcrf::cuda::kVector<T>;
};
template <class T>
struct Gradient<T, true> {
  using Coefficient = typename GradientFragments<T>::Element;
  using Layout = TensorGradientLayout;
  static constexpr int kFeatures = kTensorFeatures<T>;
  static constexpr int kVector = GradientFragments<T>::kVector;
};

template <class Layout, class Coefficient, class A>
__global__ void gradient_coefficients_kernel(const A* marginals,      // [N, K]
                                             const A* grad_messages,  // [N, K]
                                             int64_t num_nodes, int num_labels, Layout layout,
                                             Coefficient* out) {  // [N, columns]
  for (int64_t i = first_thread(); i < num_nodes * layout.columns; i += num_threads()) {
    const int64_t first = i / layout.columns * num_labels;
    const int c = layout.source(static_cast<int>(i % layout.columns));
    const A value = c < 0            ? A(0)
                    : c < num_labels ? marginals[first + c]
                                     : grad_messages[first + c - num_labels];
    out[i] = Coefficient(value);
  }
}

// Calls function(labels, vectorised, task) for the kernels of this potential.
template <class T, class Function>
void with_task(const Direction<T>& direction, const NodeBlock& block, int64_t num_labels,
               const void* coefficients, const Function& function) {
  using Coefficient = typename Gradient<T>::Coefficient;
  const BlockTask<T, Coefficient> task = {direction, block, static_cast<int>(num_labels),
                                          static_cast<const Coefficient*>(coefficients),
                                          typename Gradient<T>::Layout(num_labels).columns};
  // A walk on the tensor cores has room for both kinds of coefficients of a block of labels.
  dispatch_kernel<T>(kOnTensorCores<T> ? num_labels : 2 * num_labels, direction.vectorised,
                     [&](auto labels, auto vectorised) { function(labels, vectorised, task); });
}

}  // namespace

int64_t message_columns(DType dtype, MatmulPrecision precision, int64_t num_labels) {
  int64_t columns = 0;
  dispatch_products(dtype, precision, "potential", [&](auto tag) {
    columns = typename Gradient<decltype(tag)>::Layout(num_labels).columns;
  });
  return columns;
}

void message_coefficients(DType dtype, MatmulPrecision precision, int64_t num_nodes,
                          int64_t num_labels, const void* marginals, const void* grad_messages,
                          void* coefficients, const ExecutionContext& ctx) {
  dispatch_products(dtype, precision, "potential", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulator<T>;
    using Coefficient = typename Gradient<T>::Coefficient;
    using Layout = typename Gradient<T>::Layout;
    const Layout layout(num_labels);
    launch("gradient_coefficients", gradient_coefficients_kernel<Layout, Coefficient, A>,
           grid_size(num_nodes * layout.columns, kThreadsPerBlock), kThreadsPerBlock, 0, ctx.stream,
           static_cast<const A*>(marginals), static_cast<const A*>(grad_messages), num_nodes,
           static_cast<int>(num_labels), layout, static_cast<Coefficient*>(coefficients));
  });
}

void message_aggregates(const GraphView& graph, const AnyFactoredPotential& potential,
                        MatmulPrecision precision, const NodeBlock& block, const void* coefficients,
                        void* aggregates, void* coefficient_sums, const ExecutionContext& ctx) {
  dispatch_products(potential.dtype, precision, "potential", [&](auto tag) {
    using T = decltype(tag);
    const int64_t K = potential.num_labels;
    const int64_t feature_blocks =
        ceil_div<int64_t>(potential.num_features, Gradient<T>::kFeatures);
    auto* out = static_cast<BlockElement<T>*>(aggregates);
    auto* sums = static_cast<Accumulator<T>*>(coefficient_sums);
    with_task<T>(
        along(graph, potential.as<T>(), Gradient<T>::kVector), block, K, coefficients,
        [&](auto labels, auto vectorised, const auto& task) {
          const int64_t tasks = feature_blocks * block.count;
          if constexpr (kOnTensorCores<T>) {
            launch("aggregate", tensor_aggregate_kernel<labels(), vectorised(), T>,
                   grid_size(tasks * (task.columns / kBlockSlots<labels()>), kWarpsPerBlock),
                   kThreadsPerBlock, 0, ctx.stream, task, out, sums);
          } else {
            launch("aggregate", simt_aggregate_kernel<labels(), vectorised(), T>,
                   grid_size(tasks * (task.columns / labels()), kWarpsPerBlock), kThreadsPerBlock,
                   kWarpsPerBlock * kStageBytes<T, labels()>, ctx.stream, task, out, sums);
          }
        });
  });
}

void message_node_gradient(const GraphView& graph, const AnyFactoredPotential& potential,
                           MatmulPrecision precision, const NodeBlock& block,
                           const void* coefficients, const void* projections, bool of_targets,
                           void* gradient, const ExecutionContext& ctx) {
  dispatch_products(potential.dtype, precision, "potential", [&](auto tag) {
    using T = decltype(tag);
    constexpr int kVector = Gradient<T>::kVector;
    const FactoredPotential<T> factored = potential.as<T>();
    const int64_t feature_blocks =
        ceil_div<int64_t>(potential.num_features, Gradient<T>::kFeatures);
    const auto* rows = static_cast<const BlockElement<T>*>(projections);
    auto* out = static_cast<Accumulator<T>*>(gradient);
    with_task<T>(of_targets ? against(graph, factored, kVector) : along(graph, factored, kVector),
                 block, potential.num_labels, coefficients,
                 [&](auto labels, auto vectorised, const auto& task) {
                   const unsigned grid = grid_size(feature_blocks * block.count, kWarpsPerBlock);
                   if constexpr (kOnTensorCores<T>) {
                     launch("node_gradient", tensor_node_gradient_kernel<labels(), vectorised(), T>,
                            grid, kThreadsPerBlock, 0, ctx.stream, task, rows, out);
                   } else {
                     launch("node_gradient", simt_node_gradient_kernel<labels(), vectorised(), T>,
                            grid, kThreadsPerBlock, kWarpsPerBlock * kStageBytes<T, labels()>,
                            ctx.stream, task, rows, out);
                   }
                 });
  });
}

}  // namespace deepcrf::cuda
