// The loss of a table potential: a softmax over the K * K energies of every edge.
#pragma once

#include <cmath>
#include <limits>

#include "core/graph_view.h"
#include "cpu/edge_table.h"
#include "ops/pairwise_nll.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Loss of one edge; with grad_energies, which may be energies, its gradient times weight.
template <typename T>
T table_loss(const T* energies, int64_t pairs, int64_t truth, T weight, T* grad_energies) {
  constexpr int V = kLanes<T>;
  const int64_t whole = pairs / V * V;
  const T of_truth = energies[truth];
  // The last energies, filled up with some that add nothing.
  const Vec<T> last =
      load_up_to(energies + whole, pairs - whole, std::numeric_limits<T>::infinity());

  Vec<T> lowest_lanes = last;
  for (int64_t n = 0; n < whole; n += V) {
    const Vec<T> energy = load(energies + n);
    lowest_lanes = energy < lowest_lanes ? energy : lowest_lanes;
  }
  const T lowest = -horizontal_max<T>(-lowest_lanes);

  Vec<T> sums = exp_nonpositive(lowest - last);
  if (grad_energies != nullptr) store_up_to(grad_energies + whole, pairs - whole, sums);
  for (int64_t n = 0; n < whole; n += V) {
    const Vec<T> exponential = exp_nonpositive(lowest - load(energies + n));
    if (grad_energies != nullptr) store(grad_energies + n, exponential);
    sums += exponential;
  }
  const T sum = horizontal_sum<T>(sums);
  if (grad_energies != nullptr) {
    for (int64_t n = 0; n < pairs; ++n) grad_energies[n] *= -weight / sum;
    grad_energies[truth] += weight;
  }
  return of_truth - lowest + std::log(sum);
}

template <typename In, typename T = Accumulator<In>>
void table_losses(const GraphView& graph, int64_t num_labels,
                  const In* energies,  // [E, K, K]
                  const EdgeLabels& labels,
                  const T* edge_weight,  // [E] or null
                  T* losses,             // [E]
                  In* grad_energies,     // [E, K, K] or null
                  int num_threads) {
  const int64_t pairs = num_labels * num_labels;
  PerThread<EdgeTable<In>> tables(num_threads, pairs);
#pragma omp parallel for schedule(dynamic, 8) num_threads(num_threads)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    EdgeTable<In>& table = tables.mine();
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      const int64_t first = labels.labels[p];
      const int64_t second = labels.labels[graph.targets[e]];
      const bool valid = first != labels.ignore_index && second != labels.ignore_index;
      const auto loss = [&](T* gradient) {
        const T weight = edge_weight == nullptr ? T(1) : edge_weight[e];
        losses[e] = table_loss(table.read(energies + e * pairs), pairs, first * num_labels + second,
                               weight, gradient);
      };
      if (!valid) {
        losses[e] = 0;
        if (grad_energies != nullptr) std::fill_n(grad_energies + e * pairs, pairs, In(0.0f));
      } else if (grad_energies == nullptr) {
        loss(nullptr);
      } else {
        table.write(grad_energies + e * pairs, loss);
      }
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
