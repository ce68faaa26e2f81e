// Messages to all nodes, shared out over the threads by parts: a part is a range of planes of one
// potential, for blocks of nodes. A thread packs and multiplies planes of few parts, so that their
// share of the weight stays in the caches of its core. What a node receives from the parts is added
// in one order, so that its bits do not depend on the number of threads.
#pragma once

#include <optional>

#include "cpu/messages.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Receiver: MessageReceiver or TileReceiver.
template <typename Receiver>
class MessageParts {
 public:
  using T = typename Receiver::Value;

  MessageParts(const std::vector<GraphView>& graphs,
               const std::vector<AnyFactoredPotential>& potentials, int64_t num_nodes,
               int64_t num_labels, int num_threads)
      : num_nodes_(num_nodes), num_labels_(num_labels), coefficients_(num_nodes, num_labels) {
    int64_t num_features = 0;
    packed_.reserve(potentials.size());
    for (size_t i = 0; i < potentials.size(); ++i) {
      packed_.push_back(Receiver::pack(graphs[i], potentials[i]));
      num_features = std::max(num_features, potentials[i].num_features);
      const int64_t planes = packed_[i].planes();
      int64_t first = 0;
      do {
        const int64_t last = first + std::min(Receiver::kPartPlanes, planes - first);
        parts_.push_back({i, {first, last}, 0, Buffer<T>(num_nodes * num_labels)});
        first = last;
      } while (first < planes);
    }
    // Every thread is to have several blocks.
    const int64_t blocks = ceil_div(8 * num_threads, std::max<int64_t>(parts_.size(), 1));
    block_ = Receiver::block_size(num_nodes, num_labels, blocks);
    receivers_.emplace(num_threads, MessageShape{num_nodes, num_labels, num_features, block_});
  }

  // What follows is called by all threads of a parallel region, and ends with a barrier.

  // Packs the potentials, before the rest.
  void pack() {
    share_out([](const Part& part) { return part.planes.last - part.planes.first; },
              [&](const Part& part, int64_t plane) {
                packed_[part.potential].pack(part.planes.first + plane);
              });
  }

  // Computes the messages of all nodes.
  void receive(const T* marginals) {  // [N, K]
#pragma omp for schedule(static)
    for (int64_t p = 0; p < num_nodes_; ++p) coefficients_.set(p, marginals + p * num_labels_);
    Receiver& receiver = receivers_->mine();
    const int64_t blocks = ceil_div(num_nodes_, block_);
    share_out([&](const Part&) { return blocks; },
              [&](const Part& part, int64_t block) {
                const int64_t first = block * block_;
                receiver.receive(packed_[part.potential], part.planes, marginals, coefficients_,
                                 first, std::min(block_, num_nodes_ - first),
                                 part.messages.get() + first * num_labels_);
              });
  }

  // Adds the messages of a node, once they are computed. Called by any thread.
  void add_to(int64_t node, T* energies) const {  // [K]
    for (const Part& part : parts_) {
      const T* messages = part.messages.get() + node * num_labels_;
      for (int64_t k = 0; k < num_labels_; ++k) energies[k] += messages[k];
    }
  }

 private:
  struct Part {
    size_t potential;
    PlaneRange planes;
    int64_t next;        // item of work that no thread has taken
    Buffer<T> messages;  // [N, K]
  };

  // Calls run(part, item) for each of the items 0..count(part)-1 of each part. A thread begins with
  // parts of its own and goes on with what others have left.
  template <typename Count, typename Run>
  void share_out(const Count& count, const Run& run) {
    const size_t own = parts_.size() * omp_get_thread_num() / omp_get_num_threads();
    for (size_t i = 0; i < parts_.size(); ++i) {
      Part& part = parts_[(own + i) % parts_.size()];
      for (int64_t item = take(part); item < count(part); item = take(part)) run(part, item);
    }
#pragma omp barrier
#pragma omp single
    for (Part& part : parts_) part.next = 0;
  }

  static int64_t take(Part& part) {
    int64_t item;
#pragma omp atomic capture
    item = part.next++;
    return item;
  }

  int64_t num_nodes_, num_labels_;
  int64_t block_;  // nodes
  typename Receiver::Coefficients coefficients_;
  std::optional<PerThread<Receiver>> receivers_;
  std::vector<typename Receiver::Potential> packed_;
  std::vector<Part> parts_;
};

// The messages of all nodes over one potential.
template <typename Receiver>
void receive_all(const GraphView& graph, const AnyFactoredPotential& potential,
                 const typename Receiver::Value* marginals,  // [N, K]
                 typename Receiver::Value* messages,         // [N, K]
                 int num_threads) {
  const int64_t num_labels = potential.num_labels;
  MessageParts<Receiver> parts({graph}, {potential}, graph.num_nodes, num_labels, num_threads);

#pragma omp parallel num_threads(num_threads)
  {
    [[maybe_unused]] const typename Receiver::Scope scope;
    parts.pack();
    parts.receive(marginals);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < graph.num_nodes; ++p) {
      auto* out = messages + p * num_labels;
      std::fill_n(out, num_labels, 0);
      parts.add_to(p, out);
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
