// The gradient of L = sum_p grad_p . m_p in a factored potential. As dL/dV_pq(k, j) =
// grad_p[k] Q_q[j] + Q_p[k] grad_q[j], every neighbour brings 2K coefficients c_q = (Q_q, grad_q):
//   dL/dW[k, j] = sum_p grad_p[k] A_p[j] + Q_p[k] A_p[K + j],   A_p[c] = sum_q c_q[c] h_pq,
//   dL/dh_pq    = sum_c c_q[c] B_p[c],   B_p[j] = sum_k grad_p[k] W[k, j],
//                                        B_p[K + j] = sum_k Q_p[k] W[k, j].
// A and B exist for a block of nodes at a time; blocks follow each other on the stream, so every
// sum has one order.
#include <algorithm>

#include "core/workspace.h"
#include "cuda/messages.cuh"
#include "ops/pairwise_messages.h"

namespace deepcrf::cuda {

namespace {

constexpr int kGroup = 8;  // nodes or labels that share a load

struct NodeBlock {
  int64_t first;
  int64_t count;
};

template <class A>
__global__ void coefficients_kernel(const A* marginals,      // [N, K]
                                    const A* grad_messages,  // [N, K]
                                    int64_t num_nodes, int num_labels, int columns,
                                    A* coefficients) {  // [N, columns]
  for (int64_t i = first_thread(); i < num_nodes * columns; i += num_threads()) {
    const int64_t row = i / columns * num_labels;
    const int c = static_cast<int>(i % columns);
    coefficients[i] = c < num_labels       ? marginals[row + c]
                      : c < 2 * num_labels ? grad_messages[row + c - num_labels]
                                           : 0;
  }
}

// A_p of a block of nodes. One warp a node, slice of features and block of coefficients.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    terms_kernel(Direction<T> direction, NodeBlock block, int num_labels,
                 const Accumulator<T>* coefficients,  // [N, columns]
                 int columns,
                 Accumulator<T>* terms) {  // [block, 2K, D]
  using A = Accumulator<T>;
  const int64_t D = direction.num_features;
  const int64_t slices = ceil_div<int64_t>(D, kSlice<T>);
  const int64_t count = slices * (columns / kLabels) * block.count;
  for (int64_t task = first_warp(); task < count; task += num_warps()) {
    const int64_t node = task % block.count;
    const LaneFeatures<T, kVectorised> features(direction, task / block.count % slices);
    const int first = static_cast<int>(task / block.count / slices) * kLabels;
    A sums[kLabels][kVector<T>];
    accumulate(direction, block.first + node, features, coefficients + first, columns, sums);
#pragma unroll
    for (int c = 0; c < kLabels; ++c) {
      if (first + c >= 2 * num_labels) break;
      A* row = terms + (node * 2 * num_labels + first + c) * D + features.feature;
#pragma unroll
      for (int v = 0; v < kVector<T>; ++v) {
        if (v < features.valid) row[v] = sums[c][v];
      }
    }
  }
}

// Adds a block of nodes to dL/dW. One thread a neighbour label, feature and kGroup receiver labels.
template <class A>
__global__ void weight_gradient_kernel(NodeBlock block, int num_labels, int64_t num_features,
                                       const A* coefficients,  // [N, columns]
                                       int columns,
                                       const A* terms,    // [block, 2K, D]
                                       A* grad_weight) {  // [K, K, D], set by the first block
  const int64_t row = num_labels * num_features;
  const int64_t groups = ceil_div(num_labels, kGroup);
  for (int64_t i = first_thread(); i < groups * row; i += num_threads()) {
    const int first = static_cast<int>(i / row) * kGroup;
    const int64_t element = i % row;
    A sums[kGroup] = {};
    for (int64_t n = 0; n < block.count; ++n) {
      const A of_marginals = terms[2 * n * row + element];
      const A of_gradient = terms[(2 * n + 1) * row + element];
      const A* own = coefficients + (block.first + n) * columns;
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (first + k < num_labels) {
          sums[k] += own[num_labels + first + k] * of_marginals + own[first + k] * of_gradient;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (first + k < num_labels) {
        A* out = grad_weight + (first + k) * row + element;
        *out = block.first == 0 ? sums[k] : *out + sums[k];
      }
    }
  }
}

// B_p of a block of nodes. One thread a coefficient, feature and kGroup nodes.
template <class T>
__global__ void brackets_kernel(Direction<T> direction, NodeBlock block, int num_labels,
                                const Accumulator<T>* coefficients,  // [N, columns]
                                int columns,
                                Accumulator<T>* brackets) {  // [block, 2K, D]
  using A = Accumulator<T>;
  const int64_t D = direction.num_features;
  const int64_t row = 2 * num_labels * D;
  const int64_t groups = ceil_div<int64_t>(block.count, kGroup);
  for (int64_t i = first_thread(); i < groups * row; i += num_threads()) {
    const int64_t first = i / row * kGroup;
    const int64_t count = min(block.count - first, static_cast<int64_t>(kGroup));
    const int c = static_cast<int>(i % row / D);
    const int64_t d = i % D;
    const int j = c < num_labels ? c : c - num_labels;
    const A* own =
        coefficients + (block.first + first) * columns + (c < num_labels ? num_labels : 0);
    A sums[kGroup] = {};
    for (int k = 0; k < num_labels; ++k) {
      const A weight = direction.weight[direction.pair(k, j) * D + d];
#pragma unroll
      for (int n = 0; n < kGroup; ++n) {
        if (n < count) sums[n] += own[n * columns + k] * weight;
      }
    }
#pragma unroll
    for (int n = 0; n < kGroup; ++n) {
      if (n < count) brackets[(first + n) * row + i % row] = sums[n];
    }
  }
}

// dL/dself of a block of nodes: the sum of dL/dh over the edges where h > 0. One warp a node and
// slice of features.
template <int kLabels, bool kVectorised, class T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    node_gradient_kernel(Direction<T> direction, NodeBlock block, int num_labels,
                         const Accumulator<T>* coefficients,  // [N, columns]
                         int columns,
                         const Accumulator<T>* brackets,  // [block, 2K, D]
                         Accumulator<T>* gradient) {      // [N, D]
  using A = Accumulator<T>;
  const int64_t D = direction.num_features;
  const int64_t slices = ceil_div<int64_t>(D, kSlice<T>);
  for (int64_t task = first_warp(); task < slices * block.count; task += num_warps()) {
    const int64_t node = task % block.count;
    const int64_t p = block.first + node;
    const LaneFeatures<T, kVectorised> features(direction, task / block.count);
    A self[kVector<T>];
    A total[kVector<T>] = {};
    features.load(direction.self + p * D, self);
    for (int first = 0; first < 2 * num_labels; first += kLabels) {
      A own[kLabels][kVector<T>];
#pragma unroll
      for (int c = 0; c < kLabels; ++c) {
        const A* row = brackets + (node * 2 * num_labels + first + c) * D + features.feature;
#pragma unroll
        for (int v = 0; v < kVector<T>; ++v) {
          own[c][v] = first + c < 2 * num_labels && v < features.valid ? row[v] : 0;
        }
      }
      const int64_t end = direction.row_offsets[p + 1];
      for (int64_t e = direction.row_offsets[p]; e < end; ++e) {
        const int64_t neighbour = direction.neighbours[e];
        A other[kVector<T>];
        features.load(direction.other + neighbour * D, other);
        A sum[kVector<T>] = {};
#pragma unroll
        for (int c = 0; c < kLabels; c += kVector<A>) {
          A coefficient[kVector<A>];
          load_values(coefficients + neighbour * columns + first + c, kVector<A>, true,
                      coefficient);
#pragma unroll
          for (int i = 0; i < kVector<A>; ++i) {
#pragma unroll
            for (int v = 0; v < kVector<T>; ++v) sum[v] += coefficient[i] * own[c + i][v];
          }
        }
#pragma unroll
        for (int v = 0; v < kVector<T>; ++v) {
          if (self[v] + other[v] > 0) total[v] += sum[v];
        }
      }
    }
    features.store(gradient + p * D, total);
  }
}

// Sums of the coefficients of a node's targets. One warp a node.
template <class A>
__global__ void neighbour_sums_kernel(GraphView graph, int num_terms,
                                      const A* coefficients,  // [N, columns]
                                      int columns,
                                      A* sums) {  // [N, 2K]
  for (int64_t p = first_warp(); p < graph.num_nodes; p += num_warps()) {
    for (int c = lane_index(); c < num_terms; c += kWarpSize) {
      A sum = 0;
      for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
        sum += coefficients[static_cast<int64_t>(graph.targets[e]) * columns + c];
      }
      sums[p * num_terms + c] = sum;
    }
  }
}

// dL/dbias[k, j] = sum_p grad_p[k] (sum_q Q_q[j]) + Q_p[k] (sum_q grad_q[j]). One warp a label
// pair.
template <class A>
__global__ void bias_gradient_kernel(int64_t num_nodes, int num_labels,
                                     const A* coefficients,  // [N, columns]
                                     int columns,
                                     const A* neighbour_sums,  // [N, 2K]
                                     A* gradient) {            // [K, K]
  const int K = num_labels;
  for (int64_t pair = first_warp(); pair < static_cast<int64_t>(K) * K; pair += num_warps()) {
    const int k = static_cast<int>(pair / K);
    const int j = static_cast<int>(pair % K);
    A sum = 0;
    for (int64_t p = lane_index(); p < num_nodes; p += kWarpSize) {
      const A* own = coefficients + p * columns;
      const A* of_neighbours = neighbour_sums + p * 2 * K;
      sum += own[K + k] * of_neighbours[j] + own[k] * of_neighbours[K + j];
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) gradient[pair] = sum;
  }
}

template <class T>
struct GradientWorkspace {
  using A = Accumulator<T>;
  int64_t block_nodes;  // nodes whose terms exist at a time
  A* coefficients;      // [N, columns]
  A* neighbour_sums;    // [N, 2K]
  A* terms;             // [block_nodes, 2K, D]

  GradientWorkspace(Workspace& workspace, int64_t num_nodes, int64_t num_labels,
                    int64_t num_features) {
    const int64_t node_terms = 2 * num_labels * num_features;
    const int64_t most = kScratchBytes / (node_terms * static_cast<int64_t>(sizeof(A)));
    block_nodes = std::clamp<int64_t>(num_nodes, 1, round_up<int64_t>(most + 1, kGroup));
    coefficients = workspace.take<A>(num_nodes * padded_labels<T>(2 * num_labels));
    neighbour_sums = workspace.take<A>(num_nodes * 2 * num_labels);
    terms = workspace.take<A>(block_nodes * node_terms);
  }
};

template <class T>
void messages_backward(const GraphView& graph, const FactoredPotential<T>& potential,
                       const MessageGradientArguments& arguments,
                       const AnyFactoredGradient& gradient, const ExecutionContext& ctx) {
  using A = Accumulator<T>;
  const int64_t N = graph.num_nodes;
  const int64_t D = potential.num_features;
  const int K = static_cast<int>(potential.num_labels);
  const int columns = padded_labels<T>(2 * K);
  Workspace memory(ctx.workspace, ctx.workspace_bytes);
  const GradientWorkspace<T> workspace(memory, N, K, D);
  const A* coefficients = workspace.coefficients;

  const auto over_threads = [&](const char* name, auto kernel, int64_t count, auto... rest) {
    launch(name, kernel, grid_size(count, kThreadsPerBlock), kThreadsPerBlock, 0, ctx.stream,
           rest...);
  };
  const auto over_warps = [&](const char* name, auto kernel, int64_t count, auto... rest) {
    launch(name, kernel, grid_size(count, kWarpsPerBlock), kThreadsPerBlock, 0, ctx.stream,
           rest...);
  };

  over_threads("coefficients", coefficients_kernel<A>, N * columns,
               static_cast<const A*>(arguments.marginals),
               static_cast<const A*>(arguments.grad_messages), N, K, columns,
               workspace.coefficients);
  over_warps("neighbour_sums", neighbour_sums_kernel<A>, N, graph, 2 * K, coefficients, columns,
             workspace.neighbour_sums);
  over_warps("bias_gradient", bias_gradient_kernel<A>, K * K, N, K, coefficients, columns,
             static_cast<const A*>(workspace.neighbour_sums), static_cast<A*>(gradient.bias));

  const int64_t slices = ceil_div<int64_t>(D, kSlice<T>);
  const bool by_vectors = rows_are_vectors(potential, kVector<T>);
  dispatch_kernel<T>(2 * K, by_vectors, [&](auto labels, auto vectorised) {
    // At least one block, so that the gradient of the weight is set where there is no node.
    for (int64_t first = 0; first < std::max<int64_t>(N, 1); first += workspace.block_nodes) {
      const NodeBlock block = {first, std::min(workspace.block_nodes, N - first)};
      over_warps("terms", terms_kernel<labels(), vectorised(), T>,
                 slices * (columns / labels()) * block.count, along(graph, potential, kVector<T>),
                 block, K, coefficients, columns, workspace.terms);
      over_threads("weight_gradient", weight_gradient_kernel<A>, ceil_div(K, kGroup) * K * D, block,
                   K, D, coefficients, columns, static_cast<const A*>(workspace.terms),
                   static_cast<A*>(gradient.weight));
      const auto differentiate = [&](const Direction<T>& direction, void* out) {
        over_threads("brackets", brackets_kernel<T>,
                     ceil_div<int64_t>(block.count, kGroup) * 2 * K * D, direction, block, K,
                     coefficients, columns, workspace.terms);
        over_warps("node_gradient", node_gradient_kernel<labels(), vectorised(), T>,
                   slices * block.count, direction, block, K, coefficients, columns,
                   static_cast<const A*>(workspace.terms), static_cast<A*>(out));
      };
      differentiate(along(graph, potential, kVector<T>), gradient.source);
      differentiate(against(graph, potential, kVector<T>), gradient.target);
    }
  });
}

}  // namespace

int64_t pairwise_messages_factored_backward_workspace(const GraphView& graph,
                                                      const AnyFactoredPotential& potential) {
  Workspace workspace;
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    GradientWorkspace<decltype(tag)>(workspace, graph.num_nodes, potential.num_labels,
                                     potential.num_features);
  });
  return workspace.used();
}

void pairwise_messages_factored_backward(const GraphView& graph,
                                         const AnyFactoredPotential& potential,
                                         const MessageGradientArguments& arguments,
                                         const AnyFactoredGradient& gradient,
                                         const ExecutionContext& ctx) {
  dispatch_floating(potential.dtype, "potential", [&](auto tag) {
    messages_backward(graph, potential.as<decltype(tag)>(), arguments, gradient, ctx);
  });
}

}  // namespace deepcrf::cuda
