#include "ops/mean_field.h"

#include "core/workspace.h"
#include "cuda/messages_tensor.cuh"

namespace deepcrf::cuda {

namespace {

// Marginals of a node: softmax(-(unary + sum of parts)). One warp a node.
template <class T>
__global__ void softmax_kernel(
    const Accumulator<T>* unary,  // [N, K]
    const Accumulator<T>* parts,  // [num_parts, N, K]
    int num_parts, int64_t num_nodes, int num_labels, CoefficientLayout<T> layout,
    typename CoefficientLayout<T>::Element* coefficients,  // [N, columns]
    Accumulator<T>* marginals) {                           // [N, K]
  using A = Accumulator<T>;
  using Element = typename CoefficientLayout<T>::Element;
  const int64_t part_size = num_nodes * num_labels;
  for (int64_t node = first_warp(); node < num_nodes; node += num_warps()) {
    const auto energy = [&](int label) {
      const int64_t i = node * num_labels + label;
      A sum = unary[i];
      for (int part = 0; part < num_parts; ++part) sum += parts[part * part_size + i];
      return sum;
    };
    A lowest = INFINITY;
    for (int k = lane_index(); k < num_labels; k += kWarpSize) {
      const A own = energy(k);
      lowest = own < lowest ? own : lowest;
    }
    lowest = warp_min(lowest);
    A sum = 0;
    for (int k = lane_index(); k < num_labels; k += kWarpSize) {
      sum += exponential(lowest - energy(k));
    }
    sum = warp_sum(sum);
    for (int slot = lane_index(); slot < layout.columns; slot += kWarpSize) {
      const int k = layout.label(slot);
      const A probability = k < num_labels ? exponential(lowest - energy(k)) / sum : A(0);
      coefficients[node * layout.columns + slot] = Element(probability);
      if (k < num_labels) marginals[node * num_labels + k] = probability;
    }
  }
}

// The potentials as launches of as many directions as fit into one.
template <class T>
std::vector<MessageTasks<T>> all_directions(const std::vector<GraphView>& graphs,
                                            const std::vector<AnyFactoredPotential>& potentials) {
  std::vector<MessageTasks<T>> launches;
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
  int num_parts = 0;
  Accumulator<T>* parts;  // [num_parts, N, K]

  MeanFieldWorkspace(Workspace& workspace, const MeanFieldArguments& arguments,
                     const std::vector<MessageTasks<T>>& launches)
      : coefficients(workspace.take<Element>(arguments.num_nodes *
                                             CoefficientLayout<T>(arguments.num_labels).columns)) {
    for (const MessageTasks<T>& tasks : launches) num_parts += tasks.num_parts();
    parts = workspace.take<Accumulator<T>>(num_parts * arguments.num_nodes * arguments.num_labels);
  }
};

template <class T>
void factored_mean_field(const std::vector<MessageTasks<T>>& launches,
                         const MeanFieldArguments& arguments, const ExecutionContext& ctx) {
  const int64_t N = arguments.num_nodes;
  const int64_t K = arguments.num_labels;
  Workspace memory(ctx.workspace, ctx.workspace_bytes);
  const MeanFieldWorkspace<T> workspace(memory, arguments, launches);
  const auto update = [&](int num_parts) {
    launch("softmax", softmax_kernel<T>, grid_size(N, kWarpsPerBlock), kThreadsPerBlock, 0,
           ctx.stream, static_cast<const Accumulator<T>*>(arguments.unary), workspace.parts,
           num_parts, N, static_cast<int>(K), CoefficientLayout<T>(K), workspace.coefficients,
           static_cast<Accumulator<T>*>(arguments.marginals));
  };
  update(0);
  for (int64_t iteration = 0; iteration < arguments.iterations; ++iteration) {
    Accumulator<T>* parts = workspace.parts;
    for (const MessageTasks<T>& tasks : launches) {
      launch_messages(tasks, N, K, workspace.coefficients, parts, ctx.stream);
      parts += tasks.num_parts() * N * K;
    }
    update(workspace.num_parts);
  }
}

}  // namespace

int64_t mean_field_workspace(const std::vector<GraphView>& graphs,
                             const std::vector<AnyFactoredPotential>& potentials,
                             const MeanFieldArguments& arguments) {
  Workspace workspace;
  dispatch_floating(arguments.dtype, "unary", [&](auto tag) {
    using T = decltype(tag);
    MeanFieldWorkspace<T>(workspace, arguments, all_directions<T>(graphs, potentials));
  });
  return workspace.used();
}

void mean_field(const std::vector<GraphView>& graphs,
                const std::vector<AnyFactoredPotential>& potentials,
                const MeanFieldArguments& arguments, const ExecutionContext& ctx) {
  dispatch_floating(arguments.dtype, "unary", [&](auto tag) {
    factored_mean_field(all_directions<decltype(tag)>(graphs, potentials), arguments, ctx);
  });
}

}  // namespace deepcrf::cuda
