#include "ops/pairwise_messages.h"

#include "cpu/dispatch.h"
#include "cpu/gemm.h"
#include "cpu/messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

// Gradient of L = sum_p grad_p . m_p. As dL/dV_pq(k, j) = grad_p[k] Q_q[j] + Q_p[k] grad_q[j], the
// gradient of the hidden vector of an edge is a sum over 2K coefficients of its target,
//   dL/dh_pq = sum_j Q_q[j] (sum_k grad_p[k] W[k, j]) + grad_q[j] (sum_k Q_p[k] W[k, j]),
// whose brackets belong to its source; and dL/dW contracts the same accumulators as the forward
// pass. Planes are independent, so each is one thread's work and nothing is reduced across threads.
template <typename T>
class MessageGradient {
 public:
  static constexpr int V = kLanes<T>;
  static constexpr int64_t kBlock = 32;  // nodes whose accumulators stay in L2
  static constexpr int kEdges = 8;       // edges that share a load of the node's brackets

  MessageGradient(int64_t num_nodes, int64_t num_labels)
      : num_nodes_(num_nodes),
        num_labels_(num_labels),
        group_(plane_group(2 * num_labels)),
        node_stride_(group_ * 2 * num_labels * V),
        node_terms_(kBlock * node_stride_),
        source_gradient_(group_ * num_nodes * V),
        target_gradient_(group_ * num_nodes * V),
        weight_gradient_(group_ * num_labels * num_labels * V) {}

  // Gradients of the planes of one group.
  void run(const Direction<T>& along, int64_t plane,
           const T* marginals,       // [N, K]
           const T* grad_messages,   // [N, K]
           const T* coefficients) {  // [N, 2K]: marginals, then grad_messages
    std::fill_n(target_gradient_.get(), group_ * num_nodes_ * V, T(0));
    std::fill_n(weight_gradient_.get(), group_ * num_labels_ * num_labels_ * V, T(0));
    for (int64_t first = 0; first < num_nodes_; first += kBlock) {
      const int64_t count = std::min(kBlock, num_nodes_ - first);
      differentiate_hidden(along, plane, marginals, grad_messages, coefficients, first, count);
      differentiate_weight(along, plane, marginals, grad_messages, coefficients, first, count);
    }
  }

  const T* source_gradient(int64_t v) const { return source_gradient_.get() + v * num_nodes_ * V; }
  const T* target_gradient(int64_t v) const { return target_gradient_.get() + v * num_nodes_ * V; }
  const T* weight_gradient(int64_t v) const {
    return weight_gradient_.get() + v * num_labels_ * num_labels_ * V;
  }
  int64_t group() const { return group_; }

 private:
  void differentiate_hidden(const Direction<T>& direction, int64_t plane, const T* marginals,
                            const T* grad_messages, const T* coefficients, int64_t first,
                            int64_t count) {
    const int64_t K = num_labels_;
    const int64_t plane_size = num_nodes_ * V;
    T* brackets = node_terms_.get();  // [count, group, 2K, lanes]
    std::fill_n(brackets, count * node_stride_, T(0));
    for (int64_t v = 0; v < group_; ++v) {
      const T* weight = direction.weight + (plane + v) * K * K * V;
      T* from_gradient = brackets + v * 2 * K * V;
      gemm(count, K, K, grad_messages + first * K, K, int64_t(1), weight, K * V, from_gradient,
           node_stride_);
      gemm(count, K, K, marginals + first * K, K, int64_t(1), weight, K * V, from_gradient + K * V,
           node_stride_);
    }
    for (int64_t m = 0; m < count; ++m) {
      const int64_t p = first + m;
      const int64_t begin = direction.row_offsets[p];
      const int64_t end = direction.row_offsets[p + 1];
      for (int64_t v = 0; v < group_; ++v) {
        const T* other = direction.other + (plane + v) * plane_size;
        const Vec<T> self = load(direction.self + (plane + v) * plane_size + p * V);
        const T* bracket = brackets + m * node_stride_ + v * 2 * K * V;
        T* of_targets = target_gradient_.get() + v * plane_size;
        Vec<T> total = {};
        int64_t e = begin;
        for (; e + kEdges <= end; e += kEdges) {
          total += edge_gradients<kEdges>(direction.neighbours + e, self, other, coefficients,
                                          bracket, of_targets);
        }
        for (; e + kEdges / 2 <= end; e += kEdges / 2) {
          total += edge_gradients<kEdges / 2>(direction.neighbours + e, self, other, coefficients,
                                              bracket, of_targets);
        }
        for (; e < end; ++e) {
          total += edge_gradients<1>(direction.neighbours + e, self, other, coefficients, bracket,
                                     of_targets);
        }
        store(source_gradient_.get() + v * plane_size + p * V, total);
      }
    }
  }

  // dL/d(self + other) of some edges: adds each to of_targets, and returns their sum.
  template <int Edges>
  Vec<T> edge_gradients(const int32_t* neighbours, Vec<T> self, const T* other,
                        const T* coefficients, const T* bracket,
                        T* of_targets) const {  // [N, lanes]
    const int64_t terms = 2 * num_labels_;
    Vec<T> hidden_gradient[Edges] = {};
    const T* edge_coefficients[Edges];
    for (int i = 0; i < Edges; ++i) edge_coefficients[i] = coefficients + neighbours[i] * terms;
    for (int64_t c = 0; c < terms; ++c) {
      const Vec<T> b = load(bracket + c * V);
#pragma GCC unroll 8
      for (int i = 0; i < Edges; ++i) hidden_gradient[i] += edge_coefficients[i][c] * b;
    }
    Vec<T> total = {};
    for (int i = 0; i < Edges; ++i) {
      const int64_t q = neighbours[i];
      const Vec<T> gradient = where_positive<T>(self + load(other + q * V), hidden_gradient[i]);
      store(of_targets + q * V, load(of_targets + q * V) + gradient);
      total += gradient;
    }
    return total;
  }

  void differentiate_weight(const Direction<T>& direction, int64_t plane, const T* marginals,
                            const T* grad_messages, const T* coefficients, int64_t first,
                            int64_t count) {
    const int64_t K = num_labels_;
    const int64_t plane_size = num_nodes_ * V;
    T* accumulators = node_terms_.get();  // [count, group, 2K, lanes]
    for (int64_t m = 0; m < count; ++m) {
      const int64_t p = first + m;
      const int64_t begin = direction.row_offsets[p];
      accumulate(direction.neighbours + begin, direction.row_offsets[p + 1] - begin,
                 direction.self + plane * plane_size + p * V, direction.other + plane * plane_size,
                 plane_size, coefficients, 2 * K, accumulators + m * node_stride_);
    }
    for (int64_t v = 0; v < group_; ++v) {
      T* out = weight_gradient_.get() + v * K * K * V;
      const T* of_marginals = accumulators + v * 2 * K * V;
      gemm(K, K, count, grad_messages + first * K, int64_t(1), K, of_marginals, node_stride_, out,
           K * V);
      gemm(K, K, count, marginals + first * K, int64_t(1), K, of_marginals + K * V, node_stride_,
           out, K * V);
    }
  }

  int64_t num_nodes_, num_labels_, group_, node_stride_;
  Buffer<T> node_terms_;       // [kBlock, group, 2K, lanes]
  Buffer<T> source_gradient_;  // [group, N, lanes]
  Buffer<T> target_gradient_;  // [group, N, lanes]
  Buffer<T> weight_gradient_;  // [group, K, K, lanes]
};

// dL/dbias[k, j] = sum_p grad_p[k] (sum_q Q_q[j]) + Q_p[k] (sum_q grad_q[j]); call in parallel.
template <typename T>
void differentiate_bias(const GraphView& graph, int64_t num_labels, const T* marginals,
                        const T* grad_messages,
                        const T* coefficients,  // [N, 2K]
                        T* neighbour_sums,      // [N, 2K]
                        T* gradient) {          // [K, K]
  const int64_t terms = 2 * num_labels;
#pragma omp for schedule(dynamic, 64)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    T* sum = neighbour_sums + p * terms;
    std::fill_n(sum, terms, T(0));
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      const T* q_coefficients = coefficients + graph.targets[e] * terms;
      for (int64_t c = 0; c < terms; ++c) sum[c] += q_coefficients[c];
    }
  }
#pragma omp for schedule(static)
  for (int64_t k = 0; k < num_labels; ++k) {
    for (int64_t j = 0; j < num_labels; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < graph.num_nodes; ++p) {
        const T* of_neighbours = neighbour_sums + p * terms;
        sum += double(grad_messages[p * num_labels + k]) * of_neighbours[j] +
               double(marginals[p * num_labels + k]) * of_neighbours[num_labels + j];
      }
      gradient[k * num_labels + j] = static_cast<T>(sum);
    }
  }
}

template <typename T>
void factored_messages_backward(const GraphView& graph, const FactoredPotential<T>& potential,
                                const T* marginals, const T* grad_messages,
                                const AnyFactoredGradient& gradient, int num_threads) {
  constexpr int V = kLanes<T>;
  const int64_t num_nodes = graph.num_nodes;
  const int64_t K = potential.num_labels;
  const int64_t D = potential.num_features;
  PackedPotential<T> packed(graph, potential, plane_group(2 * K));
  Buffer<T> coefficients(num_nodes * 2 * K);
  Buffer<T> neighbour_sums(num_nodes * 2 * K);
  PerThread<MessageGradient<T>> workers(num_threads, num_nodes, K);
  T* grad_source = static_cast<T*>(gradient.source);
  T* grad_target = static_cast<T*>(gradient.target);
  T* grad_weight = static_cast<T*>(gradient.weight);

#pragma omp parallel num_threads(num_threads)
  {
    MessageGradient<T>& worker = workers.mine();
#pragma omp for schedule(static)
    for (int64_t p = 0; p < num_nodes; ++p) {
      std::copy_n(marginals + p * K, K, coefficients.get() + p * 2 * K);
      std::copy_n(grad_messages + p * K, K, coefficients.get() + p * 2 * K + K);
    }
    differentiate_bias(graph, K, marginals, grad_messages, coefficients.get(), neighbour_sums.get(),
                       static_cast<T*>(gradient.bias));

#pragma omp for schedule(dynamic)
    for (int64_t plane = 0; plane < packed.planes(); plane += worker.group()) {
      for (int64_t v = 0; v < worker.group(); ++v) packed.pack(plane + v);
      worker.run(packed.along(), plane, marginals, grad_messages, coefficients.get());
      for (int64_t v = 0; v < worker.group() && (plane + v) * V < D; ++v) {
        unpack_plane(worker.source_gradient(v), num_nodes, D, plane + v, grad_source);
        unpack_plane(worker.target_gradient(v), num_nodes, D, plane + v, grad_target);
        unpack_plane(worker.weight_gradient(v), K * K, D, plane + v, grad_weight);
      }
    }
  }
}

template <typename T>
void table_messages(const GraphView& graph, int64_t num_labels,
                    const T* energies,   // [E, K, K]
                    const T* marginals,  // [N, K]
                    T* messages,         // [N, K]
                    int num_threads) {
  const int64_t K = num_labels;
#pragma omp parallel for schedule(dynamic, 16) num_threads(num_threads)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    T* message = messages + p * K;
    std::fill_n(message, K, T(0));
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      const T* q_marginals = marginals + graph.targets[e] * K;
      for (int64_t k = 0; k < K; ++k) {
        const T* row = energies + (e * K + k) * K;
        T sum = 0;
        for (int64_t j = 0; j < K; ++j) sum += row[j] * q_marginals[j];
        message[k] += sum;
      }
    }
    for (int64_t i = graph.reverse_row_offsets[p]; i < graph.reverse_row_offsets[p + 1]; ++i) {
      const T* q_marginals = marginals + graph.reverse_sources[i] * K;
      const T* table = energies + graph.reverse_edges[i] * K * K;
      for (int64_t j = 0; j < K; ++j) {
        for (int64_t k = 0; k < K; ++k) message[k] += table[j * K + k] * q_marginals[j];
      }
    }
  }
}

template <typename T>
void table_messages_backward(const GraphView& graph, int64_t num_labels, const T* marginals,
                             const T* grad_messages,
                             T* grad_energies,  // [E, K, K]
                             int num_threads) {
  const int64_t K = num_labels;
#pragma omp parallel for schedule(dynamic, 16) num_threads(num_threads)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      const int64_t q = graph.targets[e];
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t j = 0; j < K; ++j) {
          grad_energies[(e * K + k) * K + j] = grad_messages[p * K + k] * marginals[q * K + j] +
                                               marginals[p * K + k] * grad_messages[q * K + j];
        }
      }
    }
  }
}

}  // namespace

void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    receive_all<MessageReceiver<T>>(graph, potential, static_cast<const T*>(arguments.marginals),
                                    static_cast<T*>(arguments.messages), ctx.num_threads);
  });
}

void pairwise_messages_factored_backward(const GraphView& graph,
                                         const AnyFactoredPotential& potential,
                                         const MessageGradientArguments& arguments,
                                         const AnyFactoredGradient& gradient,
                                         const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    factored_messages_backward(graph, potential.as<T>(), static_cast<const T*>(arguments.marginals),
                               static_cast<const T*>(arguments.grad_messages), gradient,
                               ctx.num_threads);
  });
}

void pairwise_messages_table(const GraphView& graph, const AnyTablePotential& potential,
                             const MessageArguments& arguments, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    table_messages(graph, potential.num_labels, static_cast<const T*>(potential.energies),
                   static_cast<const T*>(arguments.marginals), static_cast<T*>(arguments.messages),
                   ctx.num_threads);
  });
}

void pairwise_messages_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                      const MessageGradientArguments& arguments,
                                      void* grad_energies, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    table_messages_backward(graph, potential.num_labels, static_cast<const T*>(arguments.marginals),
                            static_cast<const T*>(arguments.grad_messages),
                            static_cast<T*>(grad_energies), ctx.num_threads);
  });
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(pairwise_messages_factored)
DEEPCRF_DECLARE_TILES(pairwise_messages_factored)
DEEPCRF_DECLARE_ISAS(pairwise_messages_factored_backward)
DEEPCRF_DECLARE_ISAS(pairwise_messages_table)
DEEPCRF_DECLARE_ISAS(pairwise_messages_table_backward)

void pairwise_messages_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                                const MessageArguments& arguments, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_TILES(potential.dtype, pairwise_messages_factored)
  (graph, potential, arguments, ctx);
}

void pairwise_messages_factored_backward(const GraphView& graph,
                                         const AnyFactoredPotential& potential,
                                         const MessageGradientArguments& arguments,
                                         const AnyFactoredGradient& gradient,
                                         const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_messages_factored_backward)
  (graph, potential, arguments, gradient, ctx);
}

void pairwise_messages_table(const GraphView& graph, const AnyTablePotential& potential,
                             const MessageArguments& arguments, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_messages_table)(graph, potential, arguments, ctx);
}

void pairwise_messages_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                      const MessageGradientArguments& arguments,
                                      void* grad_energies, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_messages_table_backward)
  (graph, potential, arguments, grad_energies, ctx);
}

}  // namespace deepcrf::cpu
#endif
