#include "ops/pairwise_messages.h"

#include "core/workspace.h"
#include "cuda/messages.cuh"
#include "cuda/sum_splits.cuh"
#include "cuda/table_messages.cuh"
#include "ops/table_potential.h"

namespace deepcrf::cuda {

namespace {

template <class T>
__global__ void coefficients_kernel(const Accumulator<T>* rows,  // [N, K]
                                    int64_t num_nodes, int num_labels, CoefficientLayout<T> layout,
                                    typename CoefficientLayout<T>::Element* out) {  // [N, columns]
  using Element = typename CoefficientLayout<T>::Element;
  for (int64_t i = first_thread(); i < num_nodes * layout.columns; i += num_threads()) {
    const int64_t node = i / layout.columns;
    const int label = layout.label(static_cast<int>(i % layout.columns));
    out[i] = label < num_labels ? Element(rows[node * num_labels + label]) : Element(0.0f);
  }
}

template <class T>
struct MessageWorkspace {
  using Element = typename CoefficientLayout<T>::Element;
  Element* coefficients;     // [N, columns]
  Accumulator<T>* messages;  // [splits, N, K]

  MessageWorkspace(Workspace& workspace, int64_t num_nodes, int64_t num_labels, int num_splits)
      : coefficients(workspace.take<Element>(num_nodes * CoefficientLayout<T>(num_labels).columns)),
        messages(workspace.take<Accumulator<T>>(num_splits * num_nodes * num_labels)) {}
};

template <class T>
MessageSplits<T> both_directions(const GraphView& graph, const FactoredPotential<T>& potential) {
  MessageSplits<T> splits = {};
  splits.add_both(graph, potential);
  return splits;
}

template <class T>
void factored_messages(const GraphView& graph, const FactoredPotential<T>& potential,
                       const MessageArguments& arguments, const ExecutionContext& ctx) {
  const int64_t N = graph.num_nodes;
  const int64_t K = potential.num_labels;
  const MessageSplits<T> splits = both_directions(graph, potential);
  Workspace memory(ctx.workspace, ctx.workspace_bytes);
  const MessageWorkspace<T> workspace(memory, N, K, splits.count());
  const CoefficientLayout<T> layout(K);
  launch("coefficients", coefficients_kernel<T>, grid_size(N * layout.columns, kThreadsPerBlock),
         kThreadsPerBlock, 0, ctx.stream, static_cast<const Accumulator<T>*>(arguments.marginals),
         N, static_cast<int>(K), layout, workspace.coefficients);
  launch_messages(splits, N, K, workspace.coefficients, workspace.messages, ctx.stream);
  sum_splits(workspace.messages, splits.count(), N * K,
             static_cast<Accumulator<T>*>(arguments.messages), ctx.stream);
}

template <class T>
struct TableWorkspace {
  Accumulator<T>* sent;  // [E, K]

  TableWorkspace(Workspace& workspace, int64_t num_edges, int64_t num_labels)
      : sent(workspace.take<Accumulator<T>>(num_edges * num_labels)) {}
};

}  // namespace

int64_t pairwise_messages_factored_workspace(const GraphView& graph,
                                             const AnyFactoredPotential& potential,
                                             const MessageArguments& arguments) {
  Workspace workspace;
  dispatch_products(potential.dtype, arguments.precision, "potential", [&](auto tag) {
    using T = decltype(tag);
    const int num_splits = both_directions(graph, potential.as<T>()).count();
    MessageWorkspace<T>(workspace, graph.num_nodes, potential.num_labels, num_splits);
  });
  return workspace.used();
}

void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx) {
  dispatch_products(potential.dtype, arguments.precision, "potential", [&](auto tag) {
    factored_messages(graph, potential.as<decltype(tag)>(), arguments, ctx);
  });
}

int64_t pairwise_messages_table_workspace(const GraphView& graph,
                                          const AnyTablePotential& potential,
                                          const MessageArguments&) {
  Workspace workspace;
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    TableWorkspace<decltype(tag)>(workspace, graph.num_edges, potential.num_labels);
  });
  return workspace.used();
}

void pairwise_messages_table(const GraphView& graph, const AnyTablePotential& potential,
                             const MessageArguments& arguments, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    Workspace memory(ctx.workspace, ctx.workspace_bytes);
    const TableWorkspace<T> workspace(memory, graph.num_edges, potential.num_labels);
    launch_table_messages(graph, static_cast<const T*>(potential.energies), potential.num_labels,
                          static_cast<const Accumulator<T>*>(arguments.marginals), workspace.sent,
                          static_cast<Accumulator<T>*>(arguments.messages), ctx.stream);
  });
}

void pairwise_messages_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                      const MessageGradientArguments& arguments,
                                      void* grad_energies, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    launch_early("table_gradient", table_gradient_kernel<T>,
                 grid_size(graph.num_edges, kWarpsPerBlock), kThreadsPerBlock, 0, ctx.stream, graph,
                 static_cast<int>(potential.num_labels), arguments.num_messages,
                 static_cast<const Accumulator<T>*>(arguments.marginals),
                 static_cast<const Accumulator<T>*>(arguments.grad_messages),
                 static_cast<T*>(grad_energies));
  });
}

}  // namespace deepcrf::cuda
