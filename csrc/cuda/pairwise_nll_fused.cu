// The piecewise loss of a factored potential without its energies: these exist a tile of edges and
// label pairs at a time, in registers, as products of hidden vectors and weights in shared memory.
#include <algorithm>

#include "core/workspace.h"
#include "cuda/pairwise_nll_edge_pass.cuh"
#include "cuda/pairwise_nll_weight_pass.cuh"
#include "cuda/sum_parts.cuh"
#include "ops/pairwise_nll.h"

namespace deepcrf::cuda {

namespace {

constexpr int64_t kPartialBytes = 64 << 20;  // of the splits of dL/dweight
constexpr int64_t kWeightBlocks = 264;       // wanted of the weight pass: two a multiprocessor

template <class T>
struct LossWorkspace {
  using A = Accumulator<T>;
  int64_t chunk_edges;  // C
  int splits;
  EdgeSoftmax<A> softmax;  // [E] each
  T* grad_hidden;          // [C, D]
  A* grad_source;          // [N, D]
  A* grad_target;          // [N, D]
  A* weight_parts;         // [splits, K * K, D]
  A* bias_parts;           // [splits, K * K]

  LossWorkspace(Workspace& workspace, const GraphView& graph, int64_t num_labels,
                int64_t num_features) {
    const int64_t N = graph.num_nodes;
    const int64_t E = graph.num_edges;
    const int64_t D = num_features;
    const int64_t pairs = num_labels * num_labels;
    chunk_edges = std::clamp<int64_t>(kScratchBytes / (D * static_cast<int64_t>(sizeof(T))), 1,
                                      std::max<int64_t>(E, 1));
    const int64_t most = kPartialBytes / (pairs * D * static_cast<int64_t>(sizeof(A)));
    const int64_t wanted = ceil_div(kWeightBlocks, ceil_div<int64_t>(pairs, kTileSize<T>));
    const int64_t useful = ceil_div<int64_t>(E, kTileSize<T>);
    splits = static_cast<int>(std::max<int64_t>(1, std::min({most, wanted, useful})));
    softmax.lowest = workspace.take<A>(E);
    softmax.inverse = workspace.take<A>(E);
    grad_hidden = workspace.take<T>(chunk_edges * D);
    grad_source = workspace.take<A>(N * D);
    grad_target = workspace.take<A>(N * D);
    weight_parts = workspace.take<A>(splits * pairs * D);
    bias_parts = workspace.take<A>(splits * pairs);
  }
};

template <class T>
LossProblem<T> loss_problem(const GraphView& graph, const FactoredPotential<T>& potential,
                            const EdgeLabels& labels, const void* edge_weight) {
  constexpr int kCount = 16 / sizeof(T);
  const bool vectorised =
      potential.num_features % kCount == 0 && is_aligned(potential.source, kCount) &&
      is_aligned(potential.target, kCount) && is_aligned(potential.weight, kCount);
  return {graph, potential, labels, static_cast<const T*>(edge_weight), vectorised};
}

template <class T>
int weight_buffers(int64_t num_features) {
  const size_t two = tile_bytes<EdgeTile<T>, T>(num_features, 3);
  return two <= static_cast<size_t>(most_shared_bytes()) ? 2 : 1;
}

template <class T, bool kGradient>
void edge_pass(const LossProblem<T>& problem, const EdgeChunk& chunk, T* losses,
               const EdgeSoftmax<Accumulator<T>>& softmax, T* grad_hidden,
               const ExecutionContext& ctx) {
  const int buffers = weight_buffers<T>(problem.potential.num_features);
  launch("pairwise_nll edge pass", edge_pass_kernel<T, kGradient>,
         grid_size(chunk.count, kTileSize<T>), kLossThreads,
         tile_bytes<EdgeTile<T>, T>(problem.potential.num_features, 1 + buffers), ctx.stream,
         problem, chunk, buffers, losses, softmax, grad_hidden);
}

template <class T>
void loss_backward(const LossProblem<T>& problem, DType dtype, T* losses,
                   const AnyFactoredGradient& gradient, const ExecutionContext& ctx) {
  using A = Accumulator<T>;
  const GraphView& graph = problem.graph;
  const int64_t D = problem.potential.num_features;
  const int64_t pairs = problem.potential.num_labels * problem.potential.num_labels;
  Workspace memory(ctx.workspace, ctx.workspace_bytes);
  const LossWorkspace<T> workspace(memory, graph, problem.potential.num_labels, D);
  const size_t node_bytes = graph.num_nodes * D * sizeof(A);
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  check(cudaMemsetAsync(workspace.grad_source, 0, node_bytes, stream), "cudaMemsetAsync");
  check(cudaMemsetAsync(workspace.grad_target, 0, node_bytes, stream), "cudaMemsetAsync");

  for (int64_t first = 0; first < graph.num_edges; first += workspace.chunk_edges) {
    const EdgeChunk chunk = {first, std::min(workspace.chunk_edges, graph.num_edges - first)};
    edge_pass<T, true>(problem, chunk, losses, workspace.softmax, workspace.grad_hidden, ctx);
    reduce_edges(graph, dtype, D, chunk, nullptr, workspace.grad_hidden, workspace.grad_source,
                 workspace.grad_target, ctx);
  }
  const int64_t tasks = ceil_div<int64_t>(pairs, kTileSize<T>) * workspace.splits;
  launch("pairwise_nll weight pass", weight_pass_kernel<T>, grid_size(tasks, 1), kLossThreads,
         tile_bytes<PairTile<T>, T>(D, 2), ctx.stream, problem, workspace.softmax, workspace.splits,
         workspace.weight_parts, workspace.bias_parts);
  const auto sum = [&](const A* parts, int splits, int64_t count, void* sums) {
    sum_parts<T>(parts, splits, count, static_cast<T*>(sums), ctx.stream);
  };
  sum(workspace.grad_source, 1, graph.num_nodes * D, gradient.source);
  sum(workspace.grad_target, 1, graph.num_nodes * D, gradient.target);
  sum(workspace.weight_parts, workspace.splits, pairs * D, gradient.weight);
  sum(workspace.bias_parts, workspace.splits, pairs, gradient.bias);
}

}  // namespace

bool pairwise_nll_factored_fits(const AnyFactoredPotential& potential) {
  bool fits = false;
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    const int64_t D = potential.num_features;
    fits = D <= kMostFusedFeatures &&
           tile_bytes<EdgeTile<T>, T>(D, 2) <= static_cast<size_t>(most_shared_bytes());
  });
  return fits;
}

int64_t pairwise_nll_factored_backward_workspace(const GraphView& graph,
                                                 const AnyFactoredPotential& potential) {
  Workspace workspace;
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    LossWorkspace<decltype(tag)>(workspace, graph, potential.num_labels, potential.num_features);
  });
  return workspace.used();
}

void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    edge_pass<T, false>(loss_problem(graph, potential.as<T>(), labels, nullptr),
                        {0, graph.num_edges}, static_cast<T*>(losses), {}, nullptr, ctx);
  });
}

void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    const EdgeLabels& labels, const void* edge_weight, void* losses,
                                    const AnyFactoredGradient& gradient,
                                    const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    loss_backward(loss_problem(graph, potential.as<T>(), labels, edge_weight), potential.dtype,
                  static_cast<T*>(losses), gradient, ctx);
  });
}

}  // namespace deepcrf::cuda
