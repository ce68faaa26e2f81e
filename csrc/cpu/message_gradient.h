// The gradient of factored messages, summed over several.
#pragma once

#include "cpu/gemm.h"
#include "cpu/messages.h"
#include "ops/pairwise_messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Gradient of L = sum_p grad_p . m_p. As dL/dV_pq(k, j) = grad_p[k] Q_q[j] + Q_p[k] grad_q[j], the
// gradient of the hidden vector of an edge is a sum over 2K coefficients of its target,
//   dL/dh_pq = sum_j Q_q[j] (sum_k grad_p[k] W[k, j]) + grad_q[j] (sum_k Q_p[k] W[k, j]),
// whose brackets belong to its source; and dL/dW contracts the same accumulators as the forward
// pass. Planes are independent, and so are these two halves, which are the same work: each half of
// a group of planes is one thread's turn, and nothing is reduced across threads.

// One of the messages whose gradients are summed.
template <typename T>
struct MessageTerms {
  const T* marginals;      // [N, K]
  const T* grad_messages;  // [N, K]
  T* coefficients;         // [N, 2K], what a node brings to its neighbours: both
};

template <typename T>
class MessageGradient {
 public:
  static constexpr int V = kLanes<T>;
  static constexpr int64_t kBlock = 32;  // nodes whose accumulators stay in L2
  // Edges that share a load of a node's brackets, in two planes that share one of coefficients. As
  // many as leave a register for the address of each one's coefficients.
  static constexpr int kEdges = kVectorRegisters == 32 ? 8 : 6;

  MessageGradient(int64_t num_nodes, int64_t num_labels)
      : num_nodes_(num_nodes),
        num_labels_(num_labels),
        group_(plane_group(2 * num_labels)),
        node_stride_(group_ * 2 * num_labels * V),
        node_terms_(kBlock * node_stride_),
        gradients_(group_ * std::max(2 * num_nodes, num_labels * num_labels) * V) {}

  // The gradients of the projections in the planes of one group.
  void run_hidden(const Direction<T>& along, int64_t plane,
                  const std::vector<MessageTerms<T>>& messages) {
    std::fill_n(gradients_.get(), group_ * 2 * num_nodes_ * V, T(0));
    for (const MessageTerms<T>& terms : messages) {
      for (int64_t first = 0; first < num_nodes_; first += kBlock) {
        differentiate_hidden(along, plane, terms, first, std::min(kBlock, num_nodes_ - first));
      }
    }
  }
  const T* source_gradient(int64_t v) const { return gradients_.get() + v * num_nodes_ * V; }
  const T* target_gradient(int64_t v) const { return source_gradient(group_ + v); }

  // The gradient of the weight, likewise.
  void run_weight(const Direction<T>& along, int64_t plane,
                  const std::vector<MessageTerms<T>>& messages,
                  const std::vector<BlockedCoefficients<T>>& coefficients) {  // of the messages
    std::fill_n(gradients_.get(), group_ * num_labels_ * num_labels_ * V, T(0));
    for (size_t i = 0; i < messages.size(); ++i) {
      for (int64_t first = 0; first < num_nodes_; first += kBlock) {
        differentiate_weight(along, plane, messages[i], coefficients[i], first,
                             std::min(kBlock, num_nodes_ - first));
      }
    }
  }
  const T* weight_gradient(int64_t v) const {
    return gradients_.get() + v * num_labels_ * num_labels_ * V;
  }

 private:
  void differentiate_hidden(const Direction<T>& direction, int64_t plane,
                            const MessageTerms<T>& terms, int64_t first, int64_t count) {
    const int64_t K = num_labels_;
    const int64_t plane_size = num_nodes_ * V;
    T* brackets = node_terms_.get();  // [count, group, 2K, lanes]
    for (int64_t v = 0; v < group_; ++v) {
      const T* weight = direction.weight + (plane + v) * K * K * V;
      T* from_gradient = brackets + v * 2 * K * V;
      gemm<false>(count, K, K, terms.grad_messages + first * K, K, int64_t(1), weight, K * V,
                  from_gradient, node_stride_);
      gemm<false>(count, K, K, terms.marginals + first * K, K, int64_t(1), weight, K * V,
                  from_gradient + K * V, node_stride_);
    }
    for (int64_t m = 0; m < count; ++m) {
      const int64_t p = first + m;
      const int64_t begin = direction.row_offsets[p];
      const int64_t edges = direction.row_offsets[p + 1] - begin;
      const int64_t blocks = ceil_div(edges, kEdges);
      for (int64_t v = 0; v < group_; v += 2) {
        T* totals = gradients_.get() + v * plane_size + p * V;
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t from = edges * block / blocks;
          edge_gradients(direction.neighbours + begin + from, edges * (block + 1) / blocks - from,
                         direction.self + (plane + v) * plane_size + p * V,
                         direction.other + (plane + v) * plane_size, terms.coefficients,
                         brackets + m * node_stride_ + v * 2 * K * V, totals,
                         gradients_.get() + (group_ + v) * plane_size);
        }
      }
    }
  }

  // dL/d(self + other) of some edges of a node in two planes: adds each to of_targets, and their
  // sum to `totals`.
  void edge_gradients(const int32_t* neighbours,
                      int64_t count,          // 1 to kEdges
                      const T* self,          // [2, lanes], planes N * lanes apart
                      const T* other,         // [2, N, lanes]
                      const T* coefficients,  // [N, 2K]
                      const T* brackets,      // [2, 2K, lanes]
                      T* totals,              // [2, lanes], planes N * lanes apart
                      T* of_targets) const {  // [2, N, lanes]
#define DEEPCRF_EDGES(n)                                                                  \
  case n:                                                                                 \
    if constexpr (n <= kEdges) {                                                          \
      edge_block<n>(neighbours, self, other, coefficients, brackets, totals, of_targets); \
    }                                                                                     \
    break;
    switch (count) {
      // clang-format off
      DEEPCRF_EDGES(1) DEEPCRF_EDGES(2) DEEPCRF_EDGES(3) DEEPCRF_EDGES(4)
      DEEPCRF_EDGES(5) DEEPCRF_EDGES(6) DEEPCRF_EDGES(7) DEEPCRF_EDGES(8)
      // clang-format on
    }
#undef DEEPCRF_EDGES
  }

  template <int Edges>
  void edge_block(const int32_t* neighbours, const T* self, const T* other, const T* coefficients,
                  const T* brackets, T* totals, T* of_targets) const {
    const int64_t terms = 2 * num_labels_;
    const int64_t plane_size = num_nodes_ * V;
    const T* edge_coefficients[Edges];
#pragma GCC unroll 8
    for (int i = 0; i < Edges; ++i) edge_coefficients[i] = coefficients + neighbours[i] * terms;
    Vec<T> gradient[2][Edges] = {};
    for (int64_t c = 0; c < terms; ++c) {
      const Vec<T> first = load(brackets + c * V);
      const Vec<T> second = load(brackets + (terms + c) * V);
#pragma GCC unroll 8
      for (int i = 0; i < Edges; ++i) {
        const Vec<T> coefficient = broadcast(edge_coefficients[i][c]);
        gradient[0][i] += coefficient * first;
        gradient[1][i] += coefficient * second;
      }
    }
    for (int v = 0; v < 2; ++v) {
      const Vec<T> own = load(self + v * plane_size);
      Vec<T> total = load(totals + v * plane_size);
#pragma GCC unroll 8
      for (int i = 0; i < Edges; ++i) {
        const int64_t place = v * plane_size + neighbours[i] * int64_t(V);
        const Vec<T> masked = where_positive<T>(own + load(other + place), gradient[v][i]);
        store(of_targets + place, load(of_targets + place) + masked);
        total += masked;
      }
      store(totals + v * plane_size, total);
    }
  }

  void differentiate_weight(const Direction<T>& direction, int64_t plane,
                            const MessageTerms<T>& terms,
                            const BlockedCoefficients<T>& coefficients, int64_t first,
                            int64_t count) {
    const int64_t K = num_labels_;
    const int64_t plane_size = num_nodes_ * V;
    T* accumulators = node_terms_.get();  // [count, group, 2K, lanes]
    for (int64_t m = 0; m < count; ++m) {
      const int64_t p = first + m;
      const int64_t begin = direction.row_offsets[p];
      accumulate(coefficients, direction.neighbours + begin, direction.row_offsets[p + 1] - begin,
                 direction.self + plane * plane_size + p * V, direction.other + plane * plane_size,
                 accumulators + m * node_stride_, V);
    }
    for (int64_t v = 0; v < group_; ++v) {
      T* out = gradients_.get() + v * K * K * V;
      const T* of_marginals = accumulators + v * 2 * K * V;
      gemm<true>(K, K, count, terms.grad_messages + first * K, int64_t(1), K, of_marginals,
                 node_stride_, out, K * V);
      gemm<true>(K, K, count, terms.marginals + first * K, int64_t(1), K, of_marginals + K * V,
                 node_stride_, out, K * V);
    }
  }

  int64_t num_nodes_, num_labels_, group_;
  int64_t node_stride_;
  Buffer<T> node_terms_;  // [kBlock, group, 2K, lanes]
  Buffer<T> gradients_;   // [source and target, group, N, lanes] or [group, K, K, lanes]
};

template <typename T>
std::vector<MessageTerms<T>> message_terms(const MessageGradientArguments& arguments,
                                           int64_t num_nodes, int64_t num_labels,
                                           T* coefficients) {  // [M, N, 2K]
  const int64_t size = num_nodes * num_labels;
  std::vector<MessageTerms<T>> messages;
  for (int64_t i = 0; i < arguments.num_messages; ++i) {
    messages.push_back({static_cast<const T*>(arguments.marginals) + i * size,
                        static_cast<const T*>(arguments.grad_messages) + i * size,
                        coefficients + i * 2 * size});
  }
  return messages;
}

// Fills in the coefficients; call in parallel.
template <typename T>
void join_coefficients(int64_t num_nodes, int64_t num_labels,
                       const std::vector<MessageTerms<T>>& messages) {
  for (const MessageTerms<T>& terms : messages) {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < num_nodes; ++p) {
      T* to = terms.coefficients + p * 2 * num_labels;
      std::copy_n(terms.marginals + p * num_labels, num_labels, to);
      std::copy_n(terms.grad_messages + p * num_labels, num_labels, to + num_labels);
    }
  }
}

// dL/dbias[k, j] = sum_p grad_p[k] (sum_q Q_q[j]) + Q_p[k] (sum_q grad_q[j]).
template <typename T>
class BiasGradient {
 public:
  BiasGradient(const GraphView& graph, int64_t num_labels, int64_t num_messages)
      : graph_(graph),
        num_labels_(num_labels),
        row_(round_up(num_labels, kBlock)),
        neighbour_sums_(num_messages * graph.num_nodes * 2 * row_) {}

  // Writes the gradient, [K, K]; call in parallel.
  void run(const std::vector<MessageTerms<T>>& messages, T* gradient) {
    const int64_t num_nodes = graph_.num_nodes;
    const int64_t num_messages = messages.size();
#pragma omp for schedule(dynamic, 64)
    for (int64_t i = 0; i < num_messages * num_nodes; ++i) {
      add_neighbours(messages[i / num_nodes], i % num_nodes, sums(i));
    }
#pragma omp for schedule(static)
    for (int64_t k = 0; k < num_labels_; ++k) {
      for (int64_t first = 0; first < num_labels_; first += kBlock) {
        double sum[kBlock] = {};
        for (int64_t i = 0; i < num_messages; ++i) {
          add_products(messages[i], k, sums(i * num_nodes) + first, sum);
        }
        std::copy_n(sum, std::min(kBlock, num_labels_ - first), gradient + k * num_labels_ + first);
      }
    }
  }

 private:
  static constexpr int64_t kBlock = 8;  // sums in registers

  T* sums(int64_t i) const { return neighbour_sums_.get() + i * 2 * row_; }

  void add_neighbours(const MessageTerms<T>& terms, int64_t node, T* sums) const {
    const int64_t begin = graph_.row_offsets[node];
    const int64_t K = num_labels_;
    for (int64_t half = 0; half < 2; ++half, sums += row_) {
      std::fill_n(sums + K, row_ - K, T(0));
      sum_rows(
          graph_.row_offsets[node + 1] - begin, K, [](int64_t) { return T(1); },
          [&](int64_t i) {
            return terms.coefficients + (graph_.targets[begin + i] * 2 + half) * K;
          },
          sums);
    }
  }

  void add_products(const MessageTerms<T>& terms, int64_t k,
                    const T* sums,  // [N, 2, row], from the block's first label on
                    double* total) const {
    for (int64_t p = 0; p < graph_.num_nodes; ++p, sums += 2 * row_) {
      const double of_gradient = terms.grad_messages[p * num_labels_ + k];
      const double of_marginal = terms.marginals[p * num_labels_ + k];
      for (int64_t j = 0; j < kBlock; ++j) {
        total[j] += of_gradient * sums[j] + of_marginal * sums[row_ + j];
      }
    }
  }

  GraphView graph_;
  int64_t num_labels_, row_;
  Buffer<T> neighbour_sums_;  // [M, N, 2, row]: of marginals, of grad_messages
};

template <typename T>
void factored_messages_backward(const GraphView& graph, const FactoredPotential<T>& potential,
                                const MessageGradientArguments& arguments,
                                const AnyFactoredGradient& gradient, int num_threads) {
  constexpr int V = kLanes<T>;
  const int64_t num_nodes = graph.num_nodes;
  const int64_t K = potential.num_labels;
  const int64_t D = potential.num_features;
  const int64_t group = plane_group(2 * K);
  PackedPotential<T> packed(graph, potential, group);
  const int64_t turns = 2 * (packed.planes() / group);
  num_threads = static_cast<int>(std::min<int64_t>(num_threads, turns));
  Buffer<T> coefficients(arguments.num_messages * num_nodes * 2 * K);
  BiasGradient<T> bias(graph, K, arguments.num_messages);
  const auto messages = message_terms(arguments, num_nodes, K, coefficients.get());
  std::vector<BlockedCoefficients<T>> blocked;
  for (size_t i = 0; i < messages.size(); ++i) blocked.emplace_back(num_nodes, 2 * K);
  PerThread<MessageGradient<T>> workers(num_threads, num_nodes, K);
  T* grad_source = static_cast<T*>(gradient.source);
  T* grad_target = static_cast<T*>(gradient.target);
  T* grad_weight = static_cast<T*>(gradient.weight);

#pragma omp parallel num_threads(num_threads)
  {
    MessageGradient<T>& worker = workers.mine();
    join_coefficients(num_nodes, K, messages);
    for (size_t i = 0; i < messages.size(); ++i) {
#pragma omp for schedule(static) nowait
      for (int64_t p = 0; p < num_nodes; ++p) {
        blocked[i].set(p, messages[i].coefficients + p * 2 * K);
      }
    }
    bias.run(messages, static_cast<T*>(gradient.bias));
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < packed.planes(); ++plane) packed.pack(plane);

#pragma omp for schedule(dynamic)
    for (int64_t turn = 0; turn < turns; ++turn) {
      const int64_t plane = turn / 2 * group;
      const int64_t end = std::min<int64_t>(plane + group, ceil_div(D, V));
      if (turn % 2 == 0) {
        worker.run_hidden(packed.along(), plane, messages);
        for (int64_t v = plane; v < end; ++v) {
          unpack_plane(worker.source_gradient(v - plane), num_nodes, D, v, grad_source);
          unpack_plane(worker.target_gradient(v - plane), num_nodes, D, v, grad_target);
        }
      } else {
        worker.run_weight(packed.along(), plane, messages, blocked);
        for (int64_t v = plane; v < end; ++v) {
          unpack_plane(worker.weight_gradient(v - plane), K * K, D, v, grad_weight);
        }
      }
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
