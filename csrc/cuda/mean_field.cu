#include "ops/mean_field.h"

#include "core/workspace.h"
#include "cuda/log_sum_exp.cuh"
#include "cuda/messages.cuh"

namespace deepcrf::cuda {

namespace {

// Marginals of a node: softmax(-(unary + sum of the splits of its messages)). One warp a node.
template <class T>
__global__ void softmax_kernel(
    const Accumulator<T>* unary,     // [N, K]
    const Accumulator<T>* messages,  // [splits, N, K]
    int num_splits, int64_t num_nodes, int num_labels, CoefficientLayout<T> layout,
    typename CoefficientLayout<T>::Element* coefficients,  // [N, columns]
    Accumulator<T>* marginals) {                           // [N, K]
  wait_for_former_kernels();
  using A = Accumulator<T>;
  using Element = typename CoefficientLayout<T>::Element;
  const int64_t split_size = num_nodes * num_labels;
  for (int64_t node = first_warp(); node < num_nodes; node += num_warps()) {
    const auto sum_energy = [&](int label) {
      const int64_t i = node * num_labels + label;
      A sum = unary[i];
      for (int split = 0; split < num_splits; ++split) sum += messages[split * split_size + i];
      return sum;
    };
    // Summed once where there are no more labels than lanes.
    const A lane_energy = lane_index() < num_labels ? sum_energy(lane_index()) : A(0);
    const auto energy = [&](int label) {
      return label == lane_index() ? lane_energy : sum_energy(label);
    };
    const Partition<A> partition = warp_partition<A>(num_labels, energy);
    for (int slot = lane_index(); slot < layout.columns; slot += kWarpSize) {
      const int k = layout.label(slot);
      const A probability = k < num_labels ? partition.probability(energy(k)) : A(0);
      coefficients[node * layout.columns + slot] = Element(probability);
      if (k < num_labels) marginals[node * num_labels + k] = probability;
    }
  }
}

// The potentials as launches of as many directions as fit into one.
template <class T>
std::vector<MessageSplits<T>> all_directions(const std::vector<GraphView>& graphs,
                                             const std::vector<AnyFactoredPotential>& potentials) {
  std::vector<MessageSplits<T>> launches;
  for (size_t i = 0; i < potentials.size(); ++i) {
    if (i % (kMaxDirections / 2) == 0) launches.push_back({});
    launches.back().add_both(graphs[i], potentials[i].as<T>());
  }
  return launches;
}

template <class T>
struct MeanFieldWorkspace {
  using Element = typename CoefficientLayout<T>::Element;
  Element* coefficients;  // [N, columns]
  int num_splits = 0;
  Accumulator<T>* messages;  // [num_splits, N, K]

  MeanFieldWorkspace(Workspace& workspace, const MeanFieldArguments& arguments,
                     const std::vector<MessageSplits<T>>& launches)
      : coefficients(workspace.take<Element>(arguments.num_nodes *
                                             CoefficientLayout<T>(arguments.num_labels).columns)) {
    for (const MessageSplits<T>& splits : launches) num_splits += splits.count();
    messages =
        workspace.take<Accumulator<T>>(num_splits * arguments.num_nodes * arguments.num_labels);
  }
};

template <class T>
void factored_mean_field(const std::vector<MessageSplits<T>>& launches,
                         const MeanFieldArguments& arguments, const ExecutionContext& ctx) {
  const int64_t N = arguments.num_nodes;
  const int64_t K = arguments.num_labels;
  Workspace memory(ctx.workspace, ctx.workspace_bytes);
  const MeanFieldWorkspace<T> workspace(memory, arguments, launches);
  const auto update = [&](int num_splits) {
    launch_early("softmax", softmax_kernel<T>, grid_size(N, kWarpsPerBlock), kThreadsPerBlock, 0,
                 ctx.stream, static_cast<const Accumulator<T>*>(arguments.unary),
                 workspace.messages, num_splits, N, static_cast<int>(K), CoefficientLayout<T>(K),
                 workspace.coefficients, static_cast<Accumulator<T>*>(arguments.marginals));
  };
  update(0);
  for (int64_t iteration = 0; iteration < arguments.iterations; ++iteration) {
    Accumulator<T>* messages = workspace.messages;
    for (const MessageSplits<T>& splits : launches) {
      launch_messages(splits, N, K, workspace.coefficients, messages, ctx.stream);
      messages += splits.count() * N * K;
    }
    update(workspace.num_splits);
  }
}

}  // namespace

int64_t mean_field_workspace(const std::vector<GraphView>& graphs,
                             const std::vector<AnyFactoredPotential>& potentials,
                             const MeanFieldArguments& arguments) {
  Workspace workspace;
  dispatch_products(arguments.dtype, arguments.precision, "unary", [&](auto tag) {
    using T = decltype(tag);
    MeanFieldWorkspace<T>(workspace, arguments, all_directions<T>(graphs, potentials));
  });
  return workspace.used();
}

void mean_field(const std::vector<GraphView>& graphs,
                const std::vector<AnyFactoredPotential>& potentials,
                const MeanFieldArguments& arguments, const ExecutionContext& ctx) {
  dispatch_products(arguments.dtype, arguments.precision, "unary", [&](auto tag) {
    factored_mean_field(all_directions<decltype(tag)>(graphs, potentials), arguments, ctx);
  });
}

}  // namespace deepcrf::cuda
