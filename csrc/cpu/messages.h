// Factored messages of a block of nodes: shared by pairwise_messages and mean_field.
#pragma once

#include "core/graph_view.h"
#include "cpu/accumulate.h"
#include "ops/factored_potential.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// One direction of one potential, as the receiving nodes see it. Along the edges a node p receives
// from its targets; against them a node q receives from its sources, with the roles of the two
// projections and of the two label axes exchanged.
template <typename T>
struct Direction {
  const int64_t* row_offsets;  // [N + 1]
  const int32_t* neighbours;   // [E]
  const T* self;               // [P, N, lanes]
  const T* other;              // [P, N, lanes]
  const T* weight;             // [P, K, K, lanes], entry (receiver k, neighbour j) of a plane at
                               // k * receiver_step + j * neighbour_step
  int64_t receiver_step;
  int64_t neighbour_step;
  const T* bias;  // [K neighbour, K receiver]
};

// A potential packed into planes.
template <typename T>
class PackedPotential {
 public:
  PackedPotential(const GraphView& graph, const FactoredPotential<T>& potential)
      : PackedPotential(graph, potential, plane_group(potential.num_labels)) {}

  // The number of planes is rounded up to whole groups.
  PackedPotential(const GraphView& graph, const FactoredPotential<T>& potential, int64_t group)
      : graph_(graph),
        potential_(potential),
        planes_(num_planes<T>(potential.num_features, group)),
        source_(planes_ * graph.num_nodes * kLanes<T>),
        target_(planes_ * graph.num_nodes * kLanes<T>),
        weight_(planes_ * potential.num_labels * potential.num_labels * kLanes<T>),
        bias_transposed_(potential.num_labels * potential.num_labels) {
    const int64_t K = potential.num_labels;
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t j = 0; j < K; ++j) bias_transposed_.get()[j * K + k] = potential.bias[k * K + j];
    }
  }

  int64_t planes() const { return planes_; }

  // Fills one plane of every array. Call for each plane, from any thread, before the rest.
  void pack(int64_t plane) {
    const FactoredPotential<T>& f = potential_;
    pack_plane(f.source, graph_.num_nodes, f.num_features, plane, source_.get());
    pack_plane(f.target, graph_.num_nodes, f.num_features, plane, target_.get());
    pack_plane(f.weight, f.num_labels * f.num_labels, f.num_features, plane, weight_.get());
  }

  Direction<T> along() const {
    const int64_t step = kLanes<T>;
    return {graph_.row_offsets,
            graph_.targets,
            source_.get(),
            target_.get(),
            weight_.get(),
            potential_.num_labels * step,
            step,
            bias_transposed_.get()};
  }
  Direction<T> against() const {
    const int64_t step = kLanes<T>;
    return {graph_.reverse_row_offsets,
            graph_.reverse_sources,
            target_.get(),
            source_.get(),
            weight_.get(),
            step,
            potential_.num_labels * step,
            potential_.bias};
  }

 private:
  GraphView graph_;
  FactoredPotential<T> potential_;
  int64_t planes_;
  Buffer<T> source_, target_, weight_, bias_transposed_;
};

constexpr int kContractRows = kVectorRegisters == 32 ? 4 : 3;
constexpr int kContractLabels = kVectorRegisters == 32 ? 6 : 4;
constexpr int64_t kContractDepth = 64;  // so that the weight of kContractLabels stays in L1

// The weight of a contraction: vectors at [plane, receiver, neighbour label], any strides apart.
template <typename T>
struct PlaneWeight {
  const T* data;
  int64_t plane_step, receiver_step, neighbour_step;
};

// sums[Rows, Labels] (vectors) += A[planes, depth, Rows] . W[planes, Labels, depth], lane by lane.
// All of A is read from one address, as addresses are what is short of registers here.
template <int Rows, int Labels, typename T>
inline void contract_block(int64_t planes,
                           int64_t depth,  // neighbour labels
                           const T* a,     // [planes, depth, kContractRows, lanes]
                           const PlaneWeight<T>& weight,
                           T* sums,  // [Rows, Labels, lanes], rows sums_row apart
                           int64_t sums_row) {
  constexpr int V = kLanes<T>;
  constexpr int kStep = kContractRows * V;
  Vec<T> sum[Rows][Labels] = {};
  for (int64_t v = 0; v < planes; ++v) {
    const T* w = weight.data + v * weight.plane_step;
    const T* end = a + depth * kStep;
    for (; a != end; a += kStep, w += weight.neighbour_step) {
      Vec<T> row[Rows];
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) row[m] = load(a + m * V);
#pragma GCC unroll 8
      for (int k = 0; k < Labels; ++k) {
        const Vec<T> w_k = load(w + k * weight.receiver_step);
#pragma GCC unroll 4
        for (int m = 0; m < Rows; ++m) sum[m][k] += row[m] * w_k;
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
    for (int k = 0; k < Labels; ++k) {
      T* to = sums + m * sums_row + k * V;
      store(to, load(to) + sum[m][k]);
    }
  }
}

template <int Labels, typename T>
inline void contract_rows(int64_t rows, int64_t planes, int64_t depth, const T* a, int64_t a_block,
                          const PlaneWeight<T>& weight, T* sums, int64_t sums_row) {
  int64_t m = 0;
  for (; m + kContractRows <= rows; m += kContractRows, a += a_block) {
    contract_block<kContractRows, Labels>(planes, depth, a, weight, sums + m * sums_row, sums_row);
  }
  for (; m < rows; ++m, a += kLanes<T>) {
    contract_block<1, Labels>(planes, depth, a, weight, sums + m * sums_row, sums_row);
  }
}

// sums[m, k] += sum over planes and j of A[m, j] * W[k, j] for all rows m and labels k, lane by
// lane.
template <typename T>
void contract(int64_t rows, int64_t planes, int64_t num_labels,
              const T* a,       // [rows / kContractRows, planes, K, kContractRows, lanes]
              int64_t a_block,  // from kContractRows rows of A to the next
              const PlaneWeight<T>& weight,
              T* sums) {  // [rows, K, lanes]
  const NearEqualParts depths(num_labels, planes == 1 ? ceil_div(num_labels, kContractDepth) : 1);
  const NearEqualParts blocks(num_labels, ceil_div(num_labels, kContractLabels));
  const int64_t sums_row = num_labels * kLanes<T>;
  int64_t j = 0;
  for (int64_t d = 0; d < depths.count; ++d) {
    const int64_t depth = depths.size(d);
    const T* from = a + j * kContractRows * kLanes<T>;
    int64_t k = 0;
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t labels = blocks.size(block);
      PlaneWeight<T> w = weight;
      w.data += k * weight.receiver_step + j * weight.neighbour_step;
      T* out = sums + k * kLanes<T>;
      switch (labels) {
        case 1: contract_rows<1>(rows, planes, depth, from, a_block, w, out, sums_row); break;
        case 2: contract_rows<2>(rows, planes, depth, from, a_block, w, out, sums_row); break;
        case 3: contract_rows<3>(rows, planes, depth, from, a_block, w, out, sums_row); break;
        case 4: contract_rows<4>(rows, planes, depth, from, a_block, w, out, sums_row); break;
        case 5: contract_rows<5>(rows, planes, depth, from, a_block, w, out, sums_row); break;
        case 6: contract_rows<6>(rows, planes, depth, from, a_block, w, out, sums_row); break;
      }
      k += labels;
    }
    j += depth;
  }
}

// out[0..size-1] = sum over i of term(i, first), the vector of the elements from `first` on, with
// the sums in registers. The last vector of several overlaps the one before it.
template <int Vectors, typename T, typename Term>
inline void sum_vectors(int64_t count, int64_t first, int64_t last, const Term& term, T* out) {
  constexpr int V = kLanes<T>;
  Vec<T> sum[Vectors] = {};
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) sum[n] += term(i, std::min(first + n * V, last));
  }
#pragma GCC unroll 4
  for (int n = 0; n < Vectors; ++n) store(out + std::min(first + n * V, last), sum[n]);
}

// out = sum over i of weight(i) times the row at row(i).
template <typename T, typename Weight, typename Row>
inline void sum_rows(int64_t count, int64_t size, const Weight& weight, const Row& row,
                     T* out) {  // [size]
  constexpr int V = kLanes<T>;
  if (size < V) {
    Vec<T> sum = {};
    for (int64_t i = 0; i < count; ++i) sum += weight(i) * load_up_to(row(i), size);
    return store_up_to(out, size, sum);
  }
  const auto term = [&](int64_t i, int64_t first) { return weight(i) * load(row(i) + first); };
  const int64_t last = size - V;
  int64_t first = 0;
  for (; first + 2 * V < size; first += 4 * V) sum_vectors<4>(count, first, last, term, out);
  if (first < size) sum_vectors<2>(count, first, last, term, out);
}

// Adds what the bias sends along one direction: sum_j bias[j, k] sum_q Q_q[j].
template <typename T>
void receive_bias(const int64_t* row_offsets,  // [N + 1]
                  const int32_t* neighbours,   // [E]
                  const T* bias,               // [K neighbour, K receiver]
                  int64_t num_labels,
                  const T* marginals,  // [N, K]
                  int64_t first, int64_t count,
                  T* scratch,     // [2, K]
                  T* messages) {  // [count, K]
  T* neighbour_sum = scratch;
  T* message = scratch + num_labels;
  for (int64_t m = 0; m < count; ++m) {
    const int64_t begin = row_offsets[first + m];
    sum_rows(
        row_offsets[first + m + 1] - begin, num_labels, [](int64_t) { return T(1); },
        [&](int64_t i) { return marginals + neighbours[begin + i] * num_labels; }, neighbour_sum);
    sum_rows(
        num_labels, num_labels, [&](int64_t j) { return neighbour_sum[j]; },
        [&](int64_t j) { return bias + j * num_labels; }, message);
    for (int64_t k = 0; k < num_labels; ++k) messages[m * num_labels + k] += message[k];
  }
}

// Planes first..last-1.
struct PlaneRange {
  int64_t first, last;
};

// What a receiver needs room for.
struct MessageShape {
  int64_t num_nodes, num_labels;
  int64_t num_features;  // of the widest potential
  int64_t block_nodes;
};

// Receives the messages of a block of nodes; one per thread.
template <typename T>
class MessageReceiver {
 public:
  using Value = T;
  using Potential = PackedPotential<T>;
  using Coefficients = BlockedCoefficients<T>;
  struct Scope {};  // what a thread holds while it multiplies
  // Of a part (message_parts.h): 256 features, whose weight and projections fit the L2 cache of a
  // core where nodes and labels are few.
  static constexpr int64_t kPartPlanes = 256 / kLanes<T>;
  static Potential pack(const GraphView& graph, const AnyFactoredPotential& potential) {
    return {graph, potential.as<T>()};
  }

  // Nodes of one block: enough to use a load of the weight often, and few enough for as many blocks
  // as are wanted; whole strips, whose accumulators lie kContractRows nodes together. Few labels
  // load the weight for each strip, so that more blocks cost nothing and let threads end together.
  static int64_t block_size(int64_t num_nodes, int64_t num_labels, int64_t num_blocks) {
    constexpr int64_t kMost = 64 / kStripNodes * kStripNodes;
    if (num_labels <= kFewLabels) num_blocks *= 4;
    return std::clamp(round_up(ceil_div(num_nodes, num_blocks), kStripNodes), kStripNodes, kMost);
  }

  explicit MessageReceiver(const MessageShape& shape)
      : num_nodes_(shape.num_nodes),
        num_labels_(shape.num_labels),
        group_(plane_group(num_labels_)),
        strip_nodes_(num_labels_ <= kFewLabels ? kStripNodes : shape.block_nodes),
        accumulators_(strip_nodes_ * group_ * num_labels_ * kLanes<T>),
        sums_(round_up(shape.block_nodes * num_labels_, kLanes<T>) * kLanes<T>),
        bias_scratch_(2 * num_labels_) {}

  // The messages that nodes first..first+count-1 receive over some planes of a potential, in both
  // directions; with the first of the planes, what the bias sends.
  void receive(const PackedPotential<T>& potential, const PlaneRange& planes,
               const T* marginals,                          // [N, K]
               const BlockedCoefficients<T>& coefficients,  // the same
               int64_t first, int64_t count,
               T* messages) {  // [count, K]
    constexpr int V = kLanes<T>;
    const int64_t size = count * num_labels_;
    std::fill_n(sums_.get(), round_up(size, V) * V, T(0));
    const Direction<T> directions[] = {potential.along(), potential.against()};
    for (int64_t plane = planes.first; plane < planes.last; plane += group_) {
      for (const Direction<T>& direction : directions) {
        for (int64_t m = 0; m < count; m += strip_nodes_) {
          receive_strip(direction, plane, coefficients, first + m,
                        std::min(strip_nodes_, count - m), sums_.get() + m * num_labels_ * V);
        }
      }
    }
    for (int64_t i = 0; i < size; i += V) {
      store_up_to(messages + i, size - i, horizontal_sums(sums_.get() + i * V));
    }
    if (planes.first > 0) return;
    for (const Direction<T>& direction : directions) {
      receive_bias(direction.row_offsets, direction.neighbours, direction.bias, num_labels_,
                   marginals, first, count, bias_scratch_.get(), messages);
    }
  }

 private:
  // Few labels: the accumulators of a strip of nodes stay in L1 between their sums and their
  // contraction, beside the weight of a block of labels. Many: neither fits, and a strip is a block
  // of nodes, so that the weight is read from memory least often.
  static constexpr int64_t kStripNodes = (kVectorRegisters == 32 ? 2 : 4) * kContractRows;
  static constexpr int64_t kFewLabels = 32;

  // Adds to sums what a strip of nodes receives along one direction through a group of planes.
  void receive_strip(const Direction<T>& direction, int64_t plane,
                     const BlockedCoefficients<T>& coefficients, int64_t first, int64_t count,
                     T* sums) {  // [count, K, lanes]
    constexpr int V = kLanes<T>;
    const int64_t node_plane = num_nodes_ * V;
    const int64_t label_plane = num_labels_ * V;
    const int64_t weight_plane = num_labels_ * label_plane;
    const T* self = direction.self + plane * node_plane;
    const T* other = direction.other + plane * node_plane;
    const int64_t a_block = kContractRows * group_ * label_plane;
    for (int64_t m = 0; m < count; ++m) {
      const int64_t p = first + m;
      const int64_t begin = direction.row_offsets[p];
      accumulate(coefficients, direction.neighbours + begin, direction.row_offsets[p + 1] - begin,
                 self + p * V, other,
                 accumulators_.get() + m / kContractRows * a_block + m % kContractRows * V,
                 kContractRows * V);
    }
    const int64_t together = num_labels_ <= kFewLabels ? group_ : 1;
    for (int64_t v = 0; v < group_; v += together) {
      contract(count, together, num_labels_, accumulators_.get() + v * kContractRows * label_plane,
               a_block,
               {direction.weight + (plane + v) * weight_plane, weight_plane,
                direction.receiver_step, direction.neighbour_step},
               sums);
    }
  }

  int64_t num_nodes_, num_labels_, group_;
  int64_t strip_nodes_;
  Buffer<T> accumulators_;  // A of a strip, see contract()
  Buffer<T> sums_;          // [block, K, lanes]
  Buffer<T> bias_scratch_;  // [2, K]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
