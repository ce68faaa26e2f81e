// The loop of mean field, over whatever receives the messages: MessageReceiver or TileReceiver.
#pragma once

#include "cpu/message_parts.h"
#include "ops/mean_field.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// out = softmax(-energies) of one node; out may be energies.
template <typename T>
void softmax_negative(const T* energies, int64_t num_labels, T* out) {
  constexpr int V = kLanes<T>;
  T lowest = energies[0];
  for (int64_t k = 1; k < num_labels; ++k) lowest = energies[k] < lowest ? energies[k] : lowest;
  T sum = 0;
  for (int64_t k = 0; k < num_labels; k += V) {
    const int64_t count = std::min<int64_t>(V, num_labels - k);
    T lanes[V] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = lowest - energies[k + i];
    store(lanes, exp_nonpositive(load(lanes)));
    for (int64_t i = 0; i < count; ++i) {
      out[k + i] = lanes[i];
      sum += lanes[i];
    }
  }
  for (int64_t k = 0; k < num_labels; ++k) out[k] /= sum;
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
