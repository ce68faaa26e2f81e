// The inner loop of the factored messages (design: "mean field without the K x K tables"):
//   A_p[j, :] = sum over neighbours q of  Q_q[j] * relu(self_p + other_q),
// with h = relu(...) formed in registers and the accumulators of a node never leaving them.
#pragma once

#include "cpu/planes.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Accumulators held in registers at once; the rest hold hidden vectors and a coefficient.
constexpr int kAccumulators = kVectorRegisters == 32 ? 24 : 12;

// Planes that one call of accumulate() handles. A coefficient that is loaded is multiplied with all
// of them, so that a processor of two loads and two multiply-adds a cycle is bound by the latter:
// two planes of 12 labels take 14 loads for 24 multiply-adds, one plane of 24 labels 25.
inline int64_t plane_group(int64_t num_labels) { return num_labels * 4 <= kAccumulators ? 4 : 2; }

// The coefficients of all nodes. Labels are cut into blocks, whose accumulators fit in the
// registers, and a node's coefficients of a block lie beside those of other nodes, as a loop over
// neighbours reads no others: [block][N, labels of the block].
template <typename T>
class BlockedCoefficients {
 public:
  BlockedCoefficients(int64_t num_nodes, int64_t num_labels)
      : num_nodes_(num_nodes),
        num_labels_(num_labels),
        blocks_(num_labels, ceil_div(num_labels * plane_group(num_labels), kAccumulators)),
        data_(num_nodes * num_labels) {}

  // The coefficients of one node. Call for each, from any thread, before the rest.
  void set(int64_t node, const T* row) {  // [num_labels]
    T* to = data_.get();
    for (int64_t block = 0; block < blocks_.count; ++block) {
      const int64_t labels = blocks_.size(block);
      std::copy_n(row, labels, to + node * labels);
      row += labels;
      to += num_nodes_ * labels;
    }
  }

  int64_t num_nodes() const { return num_nodes_; }
  int64_t num_labels() const { return num_labels_; }
  const NearEqualParts& blocks() const { return blocks_; }
  const T* data() const { return data_.get(); }

 private:
  int64_t num_nodes_, num_labels_;
  NearEqualParts blocks_;
  Buffer<T> data_;
};

template <int Labels, int Planes, typename T>
void accumulate_block(const int32_t* neighbours,  // [count]
                      int64_t count,
                      const T* self,          // [Planes, lanes], planes plane_size apart
                      const T* other,         // [Planes, N, lanes]
                      int64_t plane_size,     // N * lanes
                      const T* coefficients,  // [N, Labels]
                      int64_t num_labels,
                      T* out,  // [Planes, num_labels, lanes], from the block's first label on
                      int64_t out_step) {  // from a vector of out to the next
  constexpr int V = kLanes<T>;
  Vec<T> sum[Planes][Labels];
  Vec<T> own[Planes];
#pragma GCC unroll 4
  for (int v = 0; v < Planes; ++v) {
    own[v] = load(self + v * plane_size);
#pragma GCC unroll 12
    for (int j = 0; j < Labels; ++j) sum[v][j] = Vec<T>{};
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t q = neighbours[i];
    const T* q_coefficients = coefficients + q * Labels;
    Vec<T> h[Planes];
#pragma GCC unroll 4
    for (int v = 0; v < Planes; ++v) {
      h[v] = relu<T>(own[v] + load(other + v * plane_size + q * V));
    }
#pragma GCC unroll 12
    for (int j = 0; j < Labels; ++j) {
      const Vec<T> coefficient = broadcast(q_coefficients[j]);
#pragma GCC unroll 4
      for (int v = 0; v < Planes; ++v) sum[v][j] += coefficient * h[v];
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Planes; ++v) {
#pragma GCC unroll 12
    for (int j = 0; j < Labels; ++j) store(out + (v * num_labels + j) * out_step, sum[v][j]);
  }
}

// A_p for plane_group(num_labels) planes: out[v, j, :] for every label j.
template <typename T>
void accumulate(const BlockedCoefficients<T>& coefficients,
                const int32_t* neighbours,  // [count]
                int64_t count,
                const T* self,       // [group, lanes], planes N * lanes apart
                const T* other,      // [group, N, lanes]
                T* out,              // [group, num_labels, lanes]
                int64_t out_step) {  // from a vector of out to the next
  const int64_t plane_size = coefficients.num_nodes() * kLanes<T>;
  const NearEqualParts& blocks = coefficients.blocks();
  const T* of_block = coefficients.data();
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t labels = blocks.size(block);
#define DEEPCRF_LABELS(n)                                                                          \
  case n:                                                                                          \
    if constexpr (n * 2 <= kAccumulators) {                                                        \
      constexpr int planes = n * 4 <= kAccumulators ? 4 : 2;                                       \
      (blocks.count > 1                                                                            \
           ? accumulate_block<n, 2, T>                                                             \
           : accumulate_block<n, planes, T>)(neighbours, count, self, other, plane_size, of_block, \
                                             coefficients.num_labels(), out, out_step);            \
    }                                                                                              \
    break;
    switch (labels) {
      // clang-format off
      DEEPCRF_LABELS(1) DEEPCRF_LABELS(2) DEEPCRF_LABELS(3) DEEPCRF_LABELS(4)
      DEEPCRF_LABELS(5) DEEPCRF_LABELS(6) DEEPCRF_LABELS(7) DEEPCRF_LABELS(8)
      DEEPCRF_LABELS(9) DEEPCRF_LABELS(10) DEEPCRF_LABELS(11) DEEPCRF_LABELS(12)
      // clang-format on
    }
#undef DEEPCRF_LABELS
    of_block += labels * coefficients.num_nodes();
    out += labels * out_step;
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
