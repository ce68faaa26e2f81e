// The loop of mean field, over whatever receives the messages: MessageReceiver or TileReceiver.
#pragma once

#include <limits>

#include "cpu/message_parts.h"
#include "ops/mean_field.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// out = softmax(-energies) of one node; out may be energies.
template <typename T>
void softmax_negative(const T* energies, int64_t num_labels, T* out) {
  constexpr int V = kLanes<T>;
  const auto part = [&](int64_t k) {
    return load_up_to(energies + k, num_labels - k, std::numeric_limits<T>::infinity());
  };
  Vec<T> lowest_lanes = part(0);
  for (int64_t k = V; k < num_labels; k += V) {
    const Vec<T> energy = part(k);
    lowest_lanes = energy < lowest_lanes ? energy : lowest_lanes;
  }
  const T lowest = -horizontal_max<T>(-lowest_lanes);
  Vec<T> sums = {};
  for (int64_t k = 0; k < num_labels; k += V) {
    const Vec<T> exponential = exp_nonpositive(lowest - part(k));
    store_up_to(out + k, num_labels - k, exponential);
    sums += exponential;
  }
  const T sum = horizontal_sum<T>(sums);
  for (int64_t k = 0; k < num_labels; k += V) {
    store_up_to(out + k, num_labels - k, load_up_to(out + k, num_labels - k) / sum);
  }
}

template <typename Receiver>
void run_mean_field(const std::vector<GraphView>& graphs,
                    const std::vector<AnyFactoredPotential>& potentials,
                    const MeanFieldArguments& arguments, int num_threads) {
  using T = typename Receiver::Value;
  const int64_t num_nodes = arguments.num_nodes;
  const int64_t K = arguments.num_labels;
  const T* unary = static_cast<const T*>(arguments.unary);
  MessageParts<Receiver> messages(graphs, potentials, num_nodes, K, num_threads);
  Buffer<T> previous(num_nodes * K);
  // Iterations alternate between the two arrays so that the last one lands in the output.
  T* arrays[2] = {static_cast<T*>(arguments.marginals), previous.get()};

#pragma omp parallel num_threads(num_threads)
  {
    [[maybe_unused]] const typename Receiver::Scope scope;
    messages.pack();
    T* initial = arrays[arguments.iterations % 2];
#pragma omp for schedule(static)
    for (int64_t p = 0; p < num_nodes; ++p) softmax_negative(unary + p * K, K, initial + p * K);

    for (int64_t left = arguments.iterations; left > 0; --left) {
      messages.receive(arrays[left % 2]);
      T* to = arrays[(left - 1) % 2];
#pragma omp for schedule(static)
      for (int64_t p = 0; p < num_nodes; ++p) {
        T* energies = to + p * K;
        std::copy_n(unary + p * K, K, energies);
        messages.add_to(p, energies);
        softmax_negative(energies, K, energies);
      }
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
