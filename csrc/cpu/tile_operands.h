// The operands of the factored loss in bfloat16, for processors that multiply matrix tiles.
//
// A product sums over pairs of neighbours along one axis:
//   energies = H W'        pairs of features
//   hidden gradient = G W  pairs of columns
//   weight gradient = H' G pairs of edges
// Sums are float. Rows and columns are padded with zeros to whole tiles. Every element is a sum of
// Summands bfloat16: what rounding left lies behind the rounded matrix.
#pragma once

#include "cpu/loss_operands.h"
#include "cpu/tiles.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

template <int Summands>
class TileOperands {
 public:
  using Value = float;
  using Scope = TileScope;
  static_assert(kLanes<float> == kTileRows, "a vector of floats is a row of a tile");
  static_assert(kBlockEdges % kTileDepth == 0 && kGroupFeatures % kTileDepth == 0);

  explicit TileOperands(const LossShape& shape)
      : shape_(shape),
        features_(round_up(shape.features, kGroupFeatures)),
        row_(features_ + kTileRows),
        feature_steps_(features_ / kTileDepth),
        column_steps_(ceil_div(shape.pairs, kTileDepth)),
        edges_(ceil_div(shape.tile_edges, kBlockEdges) * kBlockEdges),
        gradient_edges_(shape.with_gradient ? edges_ : 0),
        scratch_(shape.num_threads, kBlockEdges * row_),
        sums_(shape.num_threads, shape.with_gradient ? kBlockEdges * kMaskBits : 0),
        weight_by_feature_(Summands * features_ / 2, shape.pairs),
        hidden_(Summands * edges_ * row_),
        weight_by_column_(shape.with_gradient ? Summands * column_words() : 0),
        gradient_(Summands * gradient_edges_ * gradient_row()),
        hidden_by_edge_(Summands * gradient_edges_ / 2 * features_),
        gradient_by_edge_(Summands * gradient_edges_ / 2, shape.pairs) {}

  // Fills the rows of a group of features; call for each.
  template <typename In>
  void pack_weight(const In* weight,  // [K, K, D]
                   int64_t group) {
    const int64_t first = group * kGroupFeatures;
    for (int64_t panel = 0; panel < weight_by_feature_.count(); ++panel) {
      const int64_t width = weight_by_feature_.width(panel);
      const int64_t column = weight_by_feature_.column(panel);
      for (int summand = 0; summand < Summands; ++summand) {
        BfloatPair* to = weight_by_feature_.at(panel, (summand * features_ + first) / 2);
        for (int64_t i = 0; i < width; ++i) {
          for (int64_t f = 0; f < kGroupFeatures; f += 2) {
            to[f / 2 * width + i] = {weight_at(weight, column + i, first + f, summand),
                                     weight_at(weight, column + i, first + f + 1, summand)};
          }
        }
      }
    }
    if (!shape_.with_gradient) return;
    for (int summand = 0; summand < Summands; ++summand) {
      for (int64_t pair = 0; pair < column_steps_ * kTileRows; ++pair) {
        for (int64_t f = first; f < first + kGroupFeatures; ++f) {
          weight_by_column(pair, f)[summand * column_words()] = {
              weight_at(weight, 2 * pair, f, summand), weight_at(weight, 2 * pair + 1, f, summand)};
        }
      }
    }
  }

  // Where a thread writes the hidden vectors of the block of edges from `first` on, zero-padded.
  float* hidden(int64_t) { return scratch_.mine().get(); }  // [count, row]
  int64_t hidden_row() const { return row_; }
  void pack_hidden(int64_t first, int64_t count) {
    float* hidden = scratch_.mine().get();
    std::fill_n(hidden + count * row_, (kBlockEdges - count) * row_, 0.0f);
    for (int64_t i = 0; i < kBlockEdges; ++i) {
      bfloat16* to = hidden_.get() + (first + i) * row_;
      for (int64_t d = 0; d < features_; d += V) {
        store_split<Summands>(to + d, hidden_words(), load(hidden + i * row_ + d));
      }
    }
    if (!shape_.with_gradient) return;
    for (int64_t d = 0; d < features_; d += kTileRows) {
      for (int64_t edge = 0; edge < kBlockEdges; edge += kTileDepth) {
        Vec<int32_t> pairs[Summands][kTileRows];
        for (int64_t i = 0; i < kTileRows; ++i) {
          const float* from = hidden + (edge + 2 * i) * row_ + d;
          split_pairs<Summands>(load(from), load(from + row_),
                                [&](int summand, Vec<int32_t> both) { pairs[summand][i] = both; });
        }
        BfloatPair* to = hidden_by_edge(d / kTileRows, (first + edge) / kTileDepth);
        for (auto& words : pairs) {
          transpose_words(words);
          for (int64_t i = 0; i < kTileRows; ++i) store(to + i * kTileRows, words[i]);
          to += by_edge_words();
        }
      }
    }
  }

  // energies += H W', for one panel of columns; also of the padding of the block.
  void add_energies(int64_t first, int64_t count, int64_t panel, Panels<float>& energies) {
    const int64_t width = energies.width(panel);
    multiply_tiles_into<Summands>(
        ceil_div(count, kTileRows), width / kTileRows, feature_steps_,
        {hidden_.get() + first * row_, kTileRows * row_ / 2, kTileRows, row_ / 2, hidden_words()},
        {weight_by_feature_.at(panel, 0), kTileRows, kTileRows * width, width,
         features_ / 2 * width},
        energies.at(panel, first), width, false);
  }

  // Rounds the gradients of a block, one panel of columns.
  void pack_gradient(int64_t first, int64_t count, int64_t panel, const Panels<float>& gradient) {
    const int64_t width = gradient.width(panel);
    for (int64_t i = 0; i < kBlockEdges; i += 2) {
      const float* from = gradient.at(panel, first + i);
      bfloat16* row = gradient_.get() + (first + i) * gradient_row() + gradient.column(panel);
      BfloatPair* pairs = gradient_by_edge_.at(panel, (first + i) / 2);
      for (int64_t n = 0; n < width; n += V) {
        const Vec<float> even = i < count ? load(from + n) : Vec<float>{};
        const Vec<float> odd = i + 1 < count ? load(from + width + n) : Vec<float>{};
        store_split<Summands>(row + n, gradient_words(), even);
        store_split<Summands>(row + gradient_row() + n, gradient_words(), odd);
        split_pairs<Summands>(even, odd, [&](int summand, Vec<int32_t> both) {
          store(pairs + summand * gradient_edges_ / 2 * width + n, both);
        });
      }
    }
    if (panel + 1 < gradient.count()) return;
    const int64_t columns = gradient.columns();
    for (int64_t i = 0; i < kBlockEdges; ++i) {
      bfloat16* row = gradient_.get() + (first + i) * gradient_row();
      for (int summand = 0; summand < Summands; ++summand) {
        std::fill_n(row + 2 * summand * gradient_words() + columns, gradient_row() - columns,
                    bfloat16(0.0f));
      }
    }
  }

  // G W of one word of features, this thread's: read by hidden_gradient().
  const float* multiply_weight(int64_t first, int64_t count, int64_t word, const Panels<float>&) {
    float* sums = sums_.mine().get();
    multiply_tiles_into<Summands>(
        ceil_div(count, kTileRows), kMaskBits / kTileRows, column_steps_,
        {gradient_.get() + first * gradient_row(), kTileRows * gradient_row() / 2, kTileRows,
         gradient_row() / 2, gradient_words()},
        {weight_by_column(0, word * kMaskBits), kTileElements, features_ * kTileRows, kTileRows,
         column_words()},
        sums, kMaskBits, true);
    return sums;
  }

  // Of edge i of the block and a vector of features from d of the word on.
  static Vec<float> hidden_gradient(const float* product, int64_t i, int64_t d) {
    return load(product + i * kMaskBits + d);
  }

  // weight_gradient += H' G, for some features and one panel of columns. The edges go in parts
  // whose rows of a tile of columns fit in L1.
  void add_weight_gradient(int64_t tile_size, int64_t feature, int64_t features, int64_t panel,
                           const Panels<float>&, Panels<float>& weight_gradient) {
    constexpr int64_t kPartSteps = 16;
    const int64_t width = weight_gradient.width(panel);
    const int64_t steps = round_up(tile_size, kBlockEdges) / kTileDepth;
    for (int64_t step = 0; step < steps; step += kPartSteps) {
      multiply_tiles_into<Summands>(
          ceil_div(features, kTileRows), width / kTileRows, std::min(kPartSteps, steps - step),
          {hidden_by_edge(feature / kTileRows, step), edges_ * kTileRows / 2, kTileElements,
           kTileRows, by_edge_words()},
          {gradient_by_edge_.at(panel, step * kTileRows), kTileRows, kTileRows * width, width,
           gradient_edges_ / 2 * width},
          weight_gradient.at(panel, feature), width, false);
    }
  }

 private:
  static constexpr int64_t V = kLanes<float>;

  // The sizes of one summand of the matrices, in words.
  int64_t hidden_words() const { return edges_ * row_ / 2; }
  int64_t column_words() const { return column_steps_ * features_ * kTileRows; }
  int64_t gradient_words() const { return gradient_edges_ * gradient_row() / 2; }
  int64_t by_edge_words() const { return gradient_edges_ / 2 * features_; }

  int64_t gradient_row() const { return column_steps_ * kTileDepth + kTileDepth; }
  // Tiles [column step][feature tile][16 pairs of columns, 16 features].
  BfloatPair* weight_by_column(int64_t pair, int64_t feature) const {
    return weight_by_column_.get() + pair / kTileRows * (features_ * kTileRows) +
           feature / kTileRows * kTileElements + pair % kTileRows * kTileRows + feature % kTileRows;
  }
  // Tiles [feature tile][edge step][16 features, 16 pairs of edges].
  BfloatPair* hidden_by_edge(int64_t feature_tile, int64_t step) const {
    return hidden_by_edge_.get() + (feature_tile * (edges_ / kTileDepth) + step) * kTileElements;
  }

  template <typename In>
  bfloat16 weight_at(const In* weight, int64_t pair, int64_t f, int summand) const {
    const bool inside = pair < shape_.pairs && f < shape_.features;
    const float value = inside ? float(weight[pair * shape_.features + f]) : 0.0f;
    const bfloat16 rounded(value);
    return summand == 0 ? rounded : bfloat16(value - rounded);
  }

  LossShape shape_;
  int64_t features_;  // padded
  int64_t row_;       // of hidden vectors; not a power of two
  int64_t feature_steps_, column_steps_;
  int64_t edges_;                         // of a tile, padded to whole blocks
  int64_t gradient_edges_;                // the same where there are gradients, else 0
  PerThread<Buffer<float>> scratch_;      // [kBlockEdges, row]
  PerThread<Buffer<float>> sums_;         // [kBlockEdges, kMaskBits]
  Panels<BfloatPair> weight_by_feature_;  // [summand, features / 2, K * K]
  Buffer<bfloat16> hidden_;               // [summand, edges, row]
  Buffer<BfloatPair> weight_by_column_;   // [summand], see weight_by_column()
  Buffer<bfloat16> gradient_;             // [summand, edges, gradient_row]
  Buffer<BfloatPair> hidden_by_edge_;     // [summand], see hidden_by_edge()
  Panels<BfloatPair> gradient_by_edge_;   // [summand, edges / 2, K * K]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
