// The operands of the three products of the factored loss: hidden vectors H [tile, D], weight
// W' [D, K * K] and energy gradients G [tile, K * K], in the form that the products read.
#pragma once

#include "cpu/hidden_masks.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

constexpr int64_t kBlockEdges = 2 * kMaskBits;     // edges of one thread's turn
constexpr int64_t kGroupFeatures = 2 * kMaskBits;  // likewise features, where the weight is packed

// The shape of a loss: D features in words of kMaskBits, K * K pairs of labels, a tile of edges.
struct LossShape {
  int64_t features, words, pairs, tile_edges;
  bool with_gradient;
  int num_threads;

  int64_t padded_features() const { return words * kMaskBits; }
};

// Dot products of a block of edges with a word of features, lanes yet to be summed: the sums of
// edge i and of a vector of features from d of the word on.
template <typename T>
inline Vec<T> sum_lanes(const T* lane_sums,  // [kBlockEdges, kMaskBits, lanes]
                        int64_t i, int64_t d) {
  return horizontal_sums(lane_sums + (i * kMaskBits + d) * kLanes<T>);
}

inline int64_t lane_sums_size(const LossShape& shape, int64_t lanes) {
  return shape.with_gradient ? kBlockEdges * kMaskBits * lanes : 0;
}

// float and double: one form of each matrix serves all products.
template <typename T>
class FloatOperands {
 public:
  using Value = T;
  struct Scope {};  // what a thread holds while it multiplies

  explicit FloatOperands(const LossShape& shape)
      : shape_(shape),
        // A vector more, lest the rows of a block compete for the same cache sets.
        row_(shape.padded_features() + kLanes<T>),
        weight_(shape.padded_features(), shape.pairs),
        hidden_(shape.tile_edges * row_),
        masks_(shape.tile_edges, shape.words, shape.with_gradient),
        lane_sums_(shape.num_threads, lane_sums_size(shape, kLanes<T>)) {}

  // Fills the rows of a group of features; call for each.
  template <typename In>
  void pack_weight(const In* weight,  // [K, K, D]
                   int64_t group) {
    const int64_t first = group * kGroupFeatures;
    const int64_t end = std::min(first + kGroupFeatures, shape_.padded_features());
    for (int64_t panel = 0; panel < weight_.count(); ++panel) {
      const int64_t width = weight_.width(panel);
      const int64_t column = weight_.column(panel);
      std::fill_n(weight_.at(panel, first), (end - first) * width, T(0));
      for (int64_t i = 0; i < std::min(width, shape_.pairs - column); ++i) {
        const In* from = weight + (column + i) * shape_.features;
        for (int64_t f = first; f < std::min(end, shape_.features); ++f) {
          weight_.at(panel, 0)[f * width + i] = static_cast<T>(from[f]);
        }
      }
    }
  }

  // Where a thread writes the hidden vectors of the block of edges from `first` on, zero-padded.
  T* hidden(int64_t first) { return hidden_.get() + first * row_; }  // [count, row]
  int64_t hidden_row() const { return row_; }
  void pack_hidden(int64_t first, int64_t count) {
    masks_.compute(first, count, hidden(first), row_);
  }

  // energies += H W', for one panel of columns.
  void add_energies(int64_t first, int64_t count, int64_t panel, Panels<T>& energies) {
    with_panel_vectors(weight_.vectors(panel), [&](auto vectors) {
      for (int64_t word = 0; word < shape_.words; ++word) {
        masked_product<vectors()>(count, hidden(first) + word * kMaskBits, row_, int64_t(1),
                                  masks_.of_edge(first) + word, shape_.words,
                                  weight_.at(panel, word * kMaskBits), energies.at(panel, first));
      }
    });
  }

  void pack_gradient(int64_t, int64_t, int64_t, const Panels<T>&) {}

  // G W of one word of features, this thread's: read by hidden_gradient().
  const T* multiply_weight(int64_t first, int64_t count, int64_t word, const Panels<T>& gradient) {
    T* lane_sums = lane_sums_.mine().get();
    for (int64_t panel = 0; panel < weight_.count(); ++panel) {
      with_panel_vectors(weight_.vectors(panel), [&](auto vectors) {
        masked_dots<vectors()>(count, gradient.at(panel, first), masks_.of_edge(first) + word,
                               shape_.words, weight_.at(panel, word * kMaskBits), panel == 0,
                               lane_sums);
      });
    }
    return lane_sums;
  }

  // Of edge i of the block and a vector of features from d of the word on.
  static Vec<T> hidden_gradient(const T* product, int64_t i, int64_t d) {
    return sum_lanes(product, i, d);
  }

  // weight_gradient += H' G, for some features and one panel of columns.
  void add_weight_gradient(int64_t tile_size, int64_t feature, int64_t features, int64_t panel,
                           const Panels<T>& gradient, Panels<T>& weight_gradient) {
    with_panel_vectors(weight_.vectors(panel), [&](auto vectors) {
      for (int64_t i = 0; i < tile_size; i += kMaskBits) {
        masked_product<vectors()>(features, hidden(i) + feature, int64_t(1), row_,
                                  masks_.of_features(i / kMaskBits) + feature, int64_t(1),
                                  gradient.at(panel, i), weight_gradient.at(panel, feature));
      }
    });
  }

 private:
  LossShape shape_;
  int64_t row_;
  Panels<T> weight_;  // [padded D, K * K]
  Buffer<T> hidden_;  // [tile, row]
  HiddenMasks masks_;
  PerThread<Buffer<T>> lane_sums_;  // [kBlockEdges, kMaskBits, lanes]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
