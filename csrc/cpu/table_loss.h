// The loss of a table potential: a softmax over the K * K energies of every edge.
#pragma once

#include <cmath>
#include <limits>

#include "core/graph_view.h"
#include "cpu/lanes.h"
#include "ops/pairwise_nll.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Loss of one edge; with grad_energies, its gradient times weight.
template <typename T>
T table_loss(const T* energies, int64_t pairs, int64_t truth, T weight, T* grad_energies) {
  constexpr int V = kLanes<T>;
  const int64_t whole = pairs / V * V;
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
  return energies[truth] - lowest + std::log(sum);
}

template <typename T>
void table_losses(const GraphView& graph, int64_t num_labels,
                  const T* energies,  // [E, K, K]
                  const EdgeLabels& labels,
                  const T* edge_weight,  // [E] or null
                  T* losses,             // [E]
                  T* grad_energies,      // [E, K, K] or null
                  int num_threads) {
  const int64_t pairs = num_labels * num_labels;
#pragma omp parallel for schedule(dynamic, 8) num_threads(num_threads)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      T* gradient = grad_energies == nullptr ? nullptr : grad_energies + e * pairs;
      const int64_t first = labels.labels[p];
      const int64_t second = labels.labels[graph.targets[e]];
      if (first == labels.ignore_index || second == labels.ignore_index) {
        losses[e] = 0;
        if (gradient != nullptr) std::fill_n(gradient, pairs, T(0));
      } else {
        losses[e] = table_loss(energies + e * pairs, pairs, first * num_labels + second,
                               edge_weight == nullptr ? T(1) : edge_weight[e], gradient);
      }
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
