// Messages of a table potential, whose energies are read from memory once a pass.
#pragma once

#include "core/graph_view.h"
#include "cpu/edge_table.h"
#include "cpu/messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// A table's rows are taken in pieces of so many vectors, and of what is left.
constexpr int kRowVectors = 4;

// What the energies of an edge send from some columns' labels to the source, lane by lane, and from
// the source's labels to those columns.
template <int Vectors, typename T>
inline void edge_messages(const T* table,  // [K, columns], rows K apart
                          int64_t num_labels,
                          int64_t columns,  // in (Vectors - 1) * lanes + 1 .. Vectors * lanes
                          const T* source,  // [K], marginals
                          const T* target,  // [columns], marginals
                          T* to_source,     // [K, lanes], added to
                          T* to_target) {   // [columns]
  constexpr int V = kLanes<T>;
  constexpr int kLast = (Vectors - 1) * V;
  const int64_t tail = columns - kLast;
  Vec<T> of_target[Vectors], sum[Vectors] = {};
#pragma GCC unroll 4
  for (int i = 0; i < Vectors - 1; ++i) of_target[i] = load(target + i * V);
  of_target[Vectors - 1] = load_up_to(target + kLast, tail);
  for (int64_t k = 0; k < num_labels; ++k, table += num_labels) {
    Vec<T> received = load(to_source + k * V);
    const Vec<T> of_source = broadcast(source[k]);
#pragma GCC unroll 4
    for (int i = 0; i < Vectors; ++i) {
      const Vec<T> row = i < Vectors - 1 ? load(table + i * V) : load_up_to(table + kLast, tail);
      received += row * of_target[i];
      sum[i] += row * of_source;
    }
    store(to_source + k * V, received);
  }
#pragma GCC unroll 4
  for (int i = 0; i < Vectors - 1; ++i) store(to_target + i * V, sum[i]);
  store_up_to(to_target + kLast, tail, sum[Vectors - 1]);
}

// dL/dV_pq(k, j) = grad_p[k] Q_q[j] + Q_p[k] grad_q[j] of some columns of an edge, set or added.
template <int Vectors, bool Add, typename T>
inline void edge_gradient(int64_t num_labels, int64_t columns,
                          const T* source,       // [K], marginals
                          const T* grad_source,  // [K]
                          const T* target,       // [columns]
                          const T* grad_target,  // [columns]
                          T* gradient) {         // [K, columns], rows K apart
  constexpr int V = kLanes<T>;
  constexpr int kLast = (Vectors - 1) * V;
  const int64_t tail = columns - kLast;
  Vec<T> of_target[Vectors], of_gradient[Vectors];
#pragma GCC unroll 4
  for (int i = 0; i < Vectors; ++i) {
    of_target[i] = load_up_to(target + i * V, columns - i * V);
    of_gradient[i] = load_up_to(grad_target + i * V, columns - i * V);
  }
  for (int64_t k = 0; k < num_labels; ++k, gradient += num_labels) {
    const Vec<T> of_source = broadcast(source[k]), grad = broadcast(grad_source[k]);
#pragma GCC unroll 4
    for (int i = 0; i < Vectors; ++i) {
      const int64_t count = i < Vectors - 1 ? V : tail;
      Vec<T> value = grad * of_target[i] + of_source * of_gradient[i];
      if constexpr (Add) value += load_up_to(gradient + i * V, count);
      store_up_to(gradient + i * V, count, value);
    }
  }
}

// Calls run(vectors, first, columns), vectors a compile-time number, for each piece of a row.
template <typename T, typename Run>
inline void for_row_pieces(int64_t num_labels, const Run& run) {
  constexpr int64_t kPiece = kRowVectors * kLanes<T>;
  for (int64_t first = 0; first < num_labels; first += kPiece) {
    const int64_t columns = std::min(kPiece, num_labels - first);
    switch (ceil_div(columns, kLanes<T>)) {
      case 1: run(std::integral_constant<int, 1>{}, first, columns); break;
      case 2: run(std::integral_constant<int, 2>{}, first, columns); break;
      case 3: run(std::integral_constant<int, 3>{}, first, columns); break;
      case 4: run(std::integral_constant<int, 4>{}, first, columns); break;
    }
  }
}

// The table is read along the edges, for both ends of each; what is sent to a target waits in an
// array K times smaller than the table until the target takes it from all its sources.
template <typename In, typename T = Accumulator<In>>
void table_messages(const GraphView& graph, int64_t num_labels,
                    const In* energies,  // [E, K, K]
                    const T* marginals,  // [N, K]
                    T* messages,         // [N, K]
                    int num_threads) {
  constexpr int V = kLanes<T>;
  const int64_t K = num_labels;
  Buffer<T> sent_to_targets(graph.num_edges * K);  // [E, K]
  T* sent = sent_to_targets.get();
  PerThread<Buffer<T>> received_by_sources(num_threads, round_up(K, V) * V);
  PerThread<EdgeTable<In>> tables(num_threads, K * K);

#pragma omp parallel num_threads(num_threads)
  {
    T* received = received_by_sources.mine().get();  // [K, lanes]
#pragma omp for schedule(dynamic, 8)
    for (int64_t p = 0; p < graph.num_nodes; ++p) {
      std::fill_n(received, round_up(K, V) * V, T(0));
      for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
        const T* table = tables.mine().read(energies + e * K * K);
        const T* target = marginals + graph.targets[e] * K;
        for_row_pieces<T>(K, [&](auto vectors, int64_t first, int64_t columns) {
          edge_messages<vectors>(table + first, K, columns, marginals + p * K, target + first,
                                 received, sent + e * K + first);
        });
      }
      for (int64_t k = 0; k < K; k += V) {
        store_up_to(messages + p * K + k, K - k, horizontal_sums(received + k * V));
      }
    }
#pragma omp for schedule(dynamic, 8)
    for (int64_t q = 0; q < graph.num_nodes; ++q) {
      for (int64_t i = graph.reverse_row_offsets[q]; i < graph.reverse_row_offsets[q + 1]; ++i) {
        const T* from = sent + graph.reverse_edges[i] * K;
        for (int64_t k = 0; k < K; ++k) messages[q * K + k] += from[k];
      }
    }
  }
}

// Summed over messages, an edge at a time.
template <typename In, typename T = Accumulator<In>>
void table_messages_backward(const GraphView& graph, int64_t num_labels, int64_t num_messages,
                             const T* marginals,      // [M, N, K]
                             const T* grad_messages,  // [M, N, K]
                             In* grad_energies,       // [E, K, K]
                             int num_threads) {
  const int64_t K = num_labels;
  PerThread<EdgeTable<In>> tables(num_threads, K * K);
#pragma omp parallel for schedule(dynamic, 8) num_threads(num_threads)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      const int64_t q = graph.targets[e];
      tables.mine().write(grad_energies + e * K * K, [&](T* gradient) {
        for (int64_t m = 0; m < num_messages; ++m) {
          const T* Q = marginals + m * graph.num_nodes * K;
          const T* grad = grad_messages + m * graph.num_nodes * K;
          for_row_pieces<T>(K, [&](auto vectors, int64_t first, int64_t columns) {
            const auto run =
                m == 0 ? edge_gradient<vectors, false, T> : edge_gradient<vectors, true, T>;
            run(K, columns, Q + p * K, grad + p * K, Q + q * K + first, grad + q * K + first,
                gradient + first);
          });
        }
      });
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
