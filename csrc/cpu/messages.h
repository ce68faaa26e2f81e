// Factored messages of a block of nodes: shared by pairwise_messages and mean_field.
#pragma once

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
  const T* weight;             // [P, K receiver, K neighbour, lanes]
  const T* bias;               // [K, K], (receiver k, neighbour j) at k * bias_row + j * bias_step
  int64_t bias_row;
  int64_t bias_step;
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
        weight_transposed_(planes_ * potential.num_labels * potential.num_labels * kLanes<T>) {}

  int64_t planes() const { return planes_; }

  // Fills one plane of every array. Call for each plane, from any thread, before the rest.
  void pack(int64_t plane) {
    const FactoredPotential<T>& f = potential_;
    pack_node_plane(f.source, graph_.num_nodes, f.num_features, plane, source_.get());
    pack_node_plane(f.target, graph_.num_nodes, f.num_features, plane, target_.get());
    pack_weight_plane(f.weight, f.num_labels, f.num_features, plane, false, weight_.get());
    pack_weight_plane(f.weight, f.num_labels, f.num_features, plane, true,
                      weight_transposed_.get());
  }

  Direction<T> along() const {
    return {graph_.row_offsets, graph_.targets,  source_.get(),         target_.get(),
            weight_.get(),      potential_.bias, potential_.num_labels, 1};
  }
  Direction<T> against() const {
    return {graph_.reverse_row_offsets,
            graph_.reverse_sources,
            target_.get(),
            source_.get(),
            weight_transposed_.get(),
            potential_.bias,
            1,
            potential_.num_labels};
  }

 private:
  GraphView graph_;
  FactoredPotential<T> potential_;
  int64_t planes_;
  Buffer<T> source_, target_, weight_, weight_transposed_;
};

// sums[Rows, Labels] (vectors) += A[Rows, depth] . W[Labels, depth], lane by lane.
template <int Rows, int Labels, typename T>
inline void contract_block(int64_t depth,  // neighbour labels
                           const T* a,     // [Rows, depth, lanes], rows a_row apart
                           int64_t a_row,
                           const T* weight,  // [Labels, depth, lanes]
                           T* sums,          // [Rows, Labels, lanes], rows sums_row apart
                           int64_t sums_row) {
  constexpr int V = kLanes<T>;
  Vec<T> sum[Rows][Labels];
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
    for (int k = 0; k < Labels; ++k) sum[m][k] = load(sums + m * sums_row + k * V);
  }
  for (int64_t j = 0; j < depth; ++j) {
    Vec<T> row[Rows];
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) row[m] = load(a + m * a_row + j * V);
#pragma GCC unroll 8
    for (int k = 0; k < Labels; ++k) {
      const Vec<T> w = load(weight + (k * depth + j) * V);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) sum[m][k] += row[m] * w;
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
    for (int k = 0; k < Labels; ++k) store(sums + m * sums_row + k * V, sum[m][k]);
  }
}

constexpr int kContractRows = kVectorRegisters == 32 ? 4 : 3;
constexpr int kContractLabels = kVectorRegisters == 32 ? 6 : 3;

template <int Labels, typename T>
inline void contract_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, const T* weight,
                          T* sums, int64_t sums_row) {
  int64_t m = 0;
  for (; m + kContractRows <= rows; m += kContractRows) {
    contract_block<kContractRows, Labels>(depth, a + m * a_row, a_row, weight, sums + m * sums_row,
                                          sums_row);
  }
  for (; m < rows; ++m) {
    contract_block<1, Labels>(depth, a + m * a_row, a_row, weight, sums + m * sums_row, sums_row);
  }
}

// sums[m, k] += sum_j A[m, j] * W[k, j] for all rows m and labels k, lane by lane.
template <typename T>
void contract(int64_t rows, int64_t num_labels,
              const T* a,  // [rows, K, lanes], rows a_row apart
              int64_t a_row,
              const T* weight,  // [K, K, lanes]
              T* sums) {        // [rows, K, lanes]
  constexpr int V = kLanes<T>;
  const int64_t blocks = ceil_div(num_labels, kContractLabels);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k = num_labels * block / blocks;
    const int64_t labels = num_labels * (block + 1) / blocks - k;
    const T* w = weight + k * num_labels * V;
    T* out = sums + k * V;
    switch (labels) {
      case 1: contract_rows<1>(rows, num_labels, a, a_row, w, out, num_labels * V); break;
      case 2: contract_rows<2>(rows, num_labels, a, a_row, w, out, num_labels * V); break;
      case 3: contract_rows<3>(rows, num_labels, a, a_row, w, out, num_labels * V); break;
      case 4: contract_rows<4>(rows, num_labels, a, a_row, w, out, num_labels * V); break;
      case 5: contract_rows<5>(rows, num_labels, a, a_row, w, out, num_labels * V); break;
      case 6: contract_rows<6>(rows, num_labels, a, a_row, w, out, num_labels * V); break;
    }
  }
}

// Receives the messages of a block of nodes; one per thread.
template <typename T>
class MessageReceiver {
 public:
  // Nodes of one block: few enough for the accumulators of a pass to stay in L2, and for every
  // thread to have several blocks.
  static int64_t block_size(int64_t num_nodes, int num_threads) {
    return std::clamp<int64_t>(round_up(ceil_div(num_nodes, 4 * num_threads), 4), 4, 32);
  }

  MessageReceiver(int64_t num_nodes, int64_t num_labels, int64_t block_nodes)
      : num_nodes_(num_nodes),
        num_labels_(num_labels),
        group_(plane_group(num_labels)),
        accumulators_(block_nodes * group_ * num_labels * kLanes<T>),
        sums_(block_nodes * num_labels * kLanes<T>),
        neighbour_sum_(num_labels),
        energies_(block_nodes * num_labels) {}

  // Room for the energies of a block, [block, K].
  T* energies() { return energies_.get(); }

  // Adds to energies the messages that nodes first..first+count-1 receive over one potential, in
  // both directions.
  void receive(const PackedPotential<T>& potential,
               const T* marginals,  // [N, K]
               int64_t first, int64_t count,
               T* energies) {  // [count, K]
    constexpr int V = kLanes<T>;
    std::fill_n(sums_.get(), count * num_labels_ * V, T(0));
    for (const Direction<T>& direction : {potential.along(), potential.against()}) {
      for (int64_t plane = 0; plane < potential.planes(); plane += group_) {
        receive_planes(direction, plane, marginals, first, count);
      }
      receive_bias(direction, marginals, first, count, energies);
    }
    for (int64_t i = 0; i < count * num_labels_; ++i) {
      energies[i] += horizontal_sum<T>(load(sums_.get() + i * V));
    }
  }

 private:
  void receive_planes(const Direction<T>& direction, int64_t plane, const T* marginals,
                      int64_t first, int64_t count) {
    constexpr int V = kLanes<T>;
    const int64_t plane_size = num_nodes_ * V;
    const int64_t a_row = group_ * num_labels_ * V;
    for (int64_t m = 0; m < count; ++m) {
      const int64_t p = first + m;
      const int64_t begin = direction.row_offsets[p];
      accumulate(direction.neighbours + begin, direction.row_offsets[p + 1] - begin,
                 direction.self + plane * plane_size + p * V, direction.other + plane * plane_size,
                 plane_size, marginals, num_labels_, accumulators_.get() + m * a_row);
    }
    const int64_t weight_plane = num_labels_ * num_labels_ * V;
    for (int64_t v = 0; v < group_; ++v) {
      contract(count, num_labels_, accumulators_.get() + v * num_labels_ * V, a_row,
               direction.weight + (plane + v) * weight_plane, sums_.get());
    }
  }

  void receive_bias(const Direction<T>& direction, const T* marginals, int64_t first, int64_t count,
                    T* energies) {
    T* total = neighbour_sum_.get();  // [K]
    for (int64_t m = 0; m < count; ++m) {
      std::fill_n(total, num_labels_, T(0));
      for (int64_t e = direction.row_offsets[first + m]; e < direction.row_offsets[first + m + 1];
           ++e) {
        const T* q_marginals = marginals + direction.neighbours[e] * num_labels_;
        for (int64_t j = 0; j < num_labels_; ++j) total[j] += q_marginals[j];
      }
      for (int64_t k = 0; k < num_labels_; ++k) {
        T sum = 0;
        for (int64_t j = 0; j < num_labels_; ++j) {
          sum += direction.bias[k * direction.bias_row + j * direction.bias_step] * total[j];
        }
        energies[m * num_labels_ + k] += sum;
      }
    }
  }

  int64_t num_nodes_, num_labels_, group_;
  Buffer<T> accumulators_;   // [block, group, K, lanes]
  Buffer<T> sums_;           // [block, K, lanes]
  Buffer<T> neighbour_sum_;  // [K]
  Buffer<T> energies_;       // [block, K]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
