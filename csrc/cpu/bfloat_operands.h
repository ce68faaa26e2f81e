// The operands of the factored loss in pairs of bfloat16, for processors that multiply them.
//
// A product sums over pairs, so each matrix is paired along the axis that the product sums over:
//   energies = H W'        pairs of features,   f and f + kMaskBits of every 2 * kMaskBits
//   hidden gradient = G W  pairs of columns,    neighbours
//   weight gradient = H' G pairs of edges,      e and e + kMaskBits of every block
// A pair is skipped where both of its hidden elements are zero. Sums are float.
#pragma once

#include "cpu/loss_operands.h"

#if defined(__AVX512BF16__)
namespace deepcrf::cpu::DEEPCRF_ISA {

class BfloatOperands {
 public:
  using Value = float;
  struct Scope {};
  static_assert(kBlockEdges == 2 * kMaskBits, "a block holds the pairs of one mask");

  explicit BfloatOperands(const LossShape& shape)
      : shape_(shape),
        groups_(ceil_div(shape.words, 2)),
        row_(2 * groups_ * kMaskBits + V),
        blocks_(ceil_div(shape.tile_edges, kBlockEdges)),
        scratch_(shape.num_threads, kBlockEdges * row_),
        masks_(blocks_ * kBlockEdges, 2 * groups_, shape.with_gradient),
        weight_by_feature_(groups_ * kMaskBits, shape.pairs),
        hidden_by_feature_(shape.tile_edges * feature_row()),
        feature_masks_(shape.tile_edges * groups_),
        weight_by_column_(shape.with_gradient ? shape.padded_features() : 0,
                          ceil_div(shape.pairs, 2)),
        gradient_by_column_(shape.with_gradient ? shape.tile_edges : 0, ceil_div(shape.pairs, 2)),
        hidden_by_edge_(shape.with_gradient ? blocks_ * kMaskBits * row_ : 0),
        gradient_by_edge_(shape.with_gradient ? blocks_ * kMaskBits : 0, shape.pairs),
        edge_masks_(shape.with_gradient ? blocks_ * row_ : 0),
        lane_sums_(shape.num_threads, lane_sums_size(shape, V)) {}

  template <typename In>
  void pack_weight(const In* weight,  // [K, K, D]
                   int64_t group) {
    const int64_t first = group * kGroupFeatures;
    for (int64_t panel = 0; panel < weight_by_feature_.count(); ++panel) {
      const int64_t width = weight_by_feature_.width(panel);
      const int64_t column = weight_by_feature_.column(panel);
      BfloatPair* to = weight_by_feature_.at(panel, group * kMaskBits);
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t f = 0; f < kMaskBits; ++f) {
          to[f * width + i] = {weight_at(weight, column + i, first + f),
                               weight_at(weight, column + i, first + f + kMaskBits)};
        }
      }
    }
    const int64_t end = std::min(first + kGroupFeatures, shape_.padded_features());
    for (int64_t panel = 0; panel < weight_by_column_.count(); ++panel) {
      const int64_t width = weight_by_column_.width(panel);
      const int64_t pair = 2 * weight_by_column_.column(panel);
      BfloatPair* to = weight_by_column_.at(panel, 0);
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t f = first; f < (shape_.with_gradient ? end : first); ++f) {
          to[f * width + i] = {weight_at(weight, pair + 2 * i, f),
                               weight_at(weight, pair + 2 * i + 1, f)};
        }
      }
    }
  }

  float* hidden(int64_t) { return scratch_.mine().get(); }  // [count, row]
  int64_t hidden_row() const { return row_; }
  void pack_hidden(int64_t first, int64_t count) {
    const float* hidden = scratch_.mine().get();
    masks_.compute(first, count, hidden, row_);
    for (int64_t i = 0; i < count; ++i) {
      const float* from = hidden + i * row_;
      BfloatPair* to = hidden_by_feature_.get() + (first + i) * feature_row();
      const uint32_t* mask = masks_.of_edge(first + i);
      for (int64_t group = 0; group < groups_; ++group) {
        for (int64_t n = 0; n < kMaskBits; n += V) {
          const float* pair = from + group * kGroupFeatures + n;
          store(to + group * kMaskBits + n, pack_pairs(load(pair), load(pair + kMaskBits)));
        }
        feature_masks_.get()[(first + i) * groups_ + group] = mask[2 * group] | mask[2 * group + 1];
      }
    }
    if (!shape_.with_gradient) return;
    const int64_t block = first / kBlockEdges;
    const uint32_t* low = masks_.of_features(2 * block);
    const uint32_t* high = masks_.of_features(2 * block + 1);
    for (int64_t i = 0; i < std::min(count, kMaskBits); ++i) {
      const float* from = hidden + i * row_;
      const bool paired = i + kMaskBits < count;
      for (int64_t d = 0; d < row_ - V; d += V) {
        const Vec<float> second = paired ? load(from + kMaskBits * row_ + d) : Vec<float>{};
        store(hidden_by_edge(block, i) + d, pack_pairs(load(from + d), second));
      }
    }
    for (int64_t d = 0; d < row_ - V; ++d) {
      edge_masks_.get()[block * row_ + d] = low[d] | (count > kMaskBits ? high[d] : 0);
    }
  }

  void add_energies(int64_t first, int64_t count, int64_t panel, Panels<float>& energies) {
    with_panel_vectors(weight_by_feature_.vectors(panel), [&](auto vectors) {
      for (int64_t group = 0; group < groups_; ++group) {
        masked_product<vectors()>(
            count, hidden_by_feature_.get() + first * feature_row() + group * kMaskBits,
            feature_row(), int64_t(1), feature_masks_.get() + first * groups_ + group, groups_,
            weight_by_feature_.at(panel, group * kMaskBits), energies.at(panel, first));
      }
    });
  }

  // Rounds the gradients of a block, one panel of columns.
  void pack_gradient(int64_t first, int64_t count, int64_t panel, const Panels<float>& gradient) {
    const int64_t block = first / kBlockEdges;
    const int64_t width = gradient.width(panel);
    for (int64_t i = 0; i < std::min(count, kMaskBits); ++i) {
      const float* from = gradient.at(panel, first + i);
      BfloatPair* to = gradient_by_edge_.at(panel, block * kMaskBits + i);
      const bool paired = i + kMaskBits < count;
      for (int64_t n = 0; n < width; n += V) {
        const Vec<float> second = paired ? load(from + kMaskBits * width + n) : Vec<float>{};
        store(to + n, pack_pairs(load(from + n), second));
      }
    }
    // By twos of vectors; an odd number of vectors leaves a half to fill.
    const bool last = panel + 1 == gradient.count();
    const int64_t begin = gradient.column(panel), end = begin + width;
    const int64_t filled = last ? 2 * gradient_by_column_.columns() : end;
    for (int64_t column = begin; column < filled; column += V) {
      const int64_t to_panel = gradient_by_column_.panel_of(column / 2);
      BfloatPair* to = gradient_by_column_.at(to_panel, first) + column / 2 -
                       gradient_by_column_.column(to_panel);
      const int64_t to_row = gradient_by_column_.width(to_panel);
      const bool inside = column < end;
      const float* from = gradient.at(panel, first) + (inside ? column - begin : 0);
      for (int64_t i = 0; i < count; ++i) {
        store_bfloat16(to + i * to_row, inside ? load(from + i * width) : Vec<float>{});
      }
    }
  }

  const float* multiply_weight(int64_t first, int64_t count, int64_t word, const Panels<float>&) {
    float* lane_sums = lane_sums_.mine().get();
    for (int64_t panel = 0; panel < weight_by_column_.count(); ++panel) {
      with_panel_vectors(weight_by_column_.vectors(panel), [&](auto vectors) {
        masked_dots<vectors()>(
            count, gradient_by_column_.at(panel, first), masks_.of_edge(first) + word, 2 * groups_,
            weight_by_column_.at(panel, word * kMaskBits), panel == 0, lane_sums);
      });
    }
    return lane_sums;
  }

  static Vec<float> hidden_gradient(const float* product, int64_t i, int64_t d) {
    return sum_lanes(product, i, d);
  }

  void add_weight_gradient(int64_t tile_size, int64_t feature, int64_t features, int64_t panel,
                           const Panels<float>&, Panels<float>& weight_gradient) {
    with_panel_vectors(weight_gradient.vectors(panel), [&](auto vectors) {
      for (int64_t block = 0; block * kBlockEdges < tile_size; ++block) {
        masked_product<vectors()>(features, hidden_by_edge(block, 0) + feature, int64_t(1), row_,
                                  edge_masks_.get() + block * row_ + feature, int64_t(1),
                                  gradient_by_edge_.at(panel, block * kMaskBits),
                                  weight_gradient.at(panel, feature));
      }
    });
  }

 private:
  static constexpr int64_t V = kLanes<float>;

  int64_t feature_row() const { return groups_ * kMaskBits + V; }
  BfloatPair* hidden_by_edge(int64_t block, int64_t i) {
    return hidden_by_edge_.get() + (block * kMaskBits + i) * row_;
  }

  template <typename In>
  bfloat16 weight_at(const In* weight, int64_t pair, int64_t f) const {
    const bool inside = pair < shape_.pairs && f < shape_.features;
    return bfloat16(inside ? float(weight[pair * shape_.features + f]) : 0.0f);
  }

  LossShape shape_;
  int64_t groups_, row_, blocks_;
  PerThread<Buffer<float>> scratch_;  // [kBlockEdges, row]
  HiddenMasks masks_;
  Panels<BfloatPair> weight_by_feature_;   // [groups * kMaskBits, K * K]
  Buffer<BfloatPair> hidden_by_feature_;   // [tile, feature_row]
  Buffer<uint32_t> feature_masks_;         // [tile, groups]
  Panels<BfloatPair> weight_by_column_;    // [padded D, K * K / 2]
  Panels<BfloatPair> gradient_by_column_;  // [tile, K * K / 2]
  Buffer<BfloatPair> hidden_by_edge_;      // [blocks * kMaskBits, row]
  Panels<BfloatPair> gradient_by_edge_;    // [blocks * kMaskBits, K * K]
  Buffer<uint32_t> edge_masks_;            // [blocks, row]
  PerThread<Buffer<float>> lane_sums_;     // [kBlockEdges, kMaskBits, lanes]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
#endif
