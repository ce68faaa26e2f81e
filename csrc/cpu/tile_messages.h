// Messages by matrix tiles: A of a block of nodes (tile_accumulate.h), rounded to bfloat16, is
// contracted with the weight in one product over all neighbour labels and features.
#pragma once

#include <limits>

#include "cpu/messages.h"
#include "cpu/tile_accumulate.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// One direction of a potential; see Direction.
struct TileDirection {
  const int64_t* row_offsets;  // [N + 1]
  const int32_t* neighbours;   // [E]
  const float* self;           // [N, row]
  const float* other;          // [N, row]
  const BfloatPair* weight;  // tiles [plane, K neighbour][receiver tile][16 features, 16 receivers]
  const float* bias;         // [K neighbour, K receiver]

  TileNeighbours of_node(int64_t node, int64_t row) const {
    const int64_t first = row_offsets[node];
    return {neighbours + first, row_offsets[node + 1] - first, self + node * row, other, row};
  }
};

// A potential packed into tiles.
template <int Summands>
class TilePotential {
 public:
  TilePotential(const GraphView& graph, const AnyFactoredPotential& potential)
      : graph_(graph),
        potential_(potential),
        nodes_(graph, potential),
        receiver_tiles_(ceil_div(potential.num_labels, kTileRows)),
        weight_along_(Summands * weight_words()),
        weight_against_(Summands * weight_words()),
        bias_(potential.num_labels * potential.num_labels),
        bias_transposed_(potential.num_labels * potential.num_labels) {
    const int64_t K = potential.num_labels;
    dispatch_tile_dtype(potential.dtype, [&](auto tag) {
      const auto* bias = potential.as<decltype(tag)>().bias;
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t j = 0; j < K; ++j) {
          bias_.get()[k * K + j] = bias_transposed_.get()[j * K + k] = bias[k * K + j];
        }
      }
    });
  }

  int64_t planes() const { return nodes_.planes(); }
  int64_t row() const { return nodes_.row(); }
  int64_t weight_words() const {  // of one summand
    return planes() * potential_.num_labels * receiver_tiles_ * kTileElements;
  }

  // Fills one plane of every array. Call for each plane, from any thread, before the rest.
  void pack(int64_t plane) {
    nodes_.pack(plane);
    dispatch_tile_dtype(potential_.dtype, [&](auto tag) {
      const auto* weight = potential_.as<decltype(tag)>().weight;
      const int64_t K = potential_.num_labels, D = potential_.num_features;
      for (int64_t j = 0; j < K; ++j) {
        pack_weight(weight + j * D, K * D, plane, j, weight_along_.get());
        pack_weight(weight + j * K * D, D, plane, j, weight_against_.get());
      }
    });
  }

  TileDirection along() const {
    return {graph_.row_offsets, graph_.targets,      nodes_.source(),
            nodes_.target(),    weight_along_.get(), bias_transposed_.get()};
  }
  TileDirection against() const {
    return {graph_.reverse_row_offsets,
            graph_.reverse_sources,
            nodes_.target(),
            nodes_.source(),
            weight_against_.get(),
            bias_.get()};
  }

 private:
  // The rows of one neighbour label, receivers `step` apart.
  template <typename In>
  void pack_weight(const In* rows, int64_t step, int64_t plane, int64_t neighbour,
                   BfloatPair* weight) {
    const int64_t first = plane * kTilePlane;
    const int64_t features = potential_.num_features - first;
    const int64_t upper = std::min(kTileRows, features);
    for (int64_t tile = 0; tile < receiver_tiles_; ++tile) {
      bfloat16 split[Summands][kTileRows][kTilePlane] = {};
      for (int64_t i = 0; i < std::min(kTileRows, potential_.num_labels - tile * kTileRows); ++i) {
        const In* row = rows + (tile * kTileRows + i) * step + first;
        constexpr int64_t kWords = kTileElements;  // of one summand of `split`
        store_split<Summands>(split[0][i], kWords, load_up_to(row, features));
        store_split<Summands>(split[0][i] + kTileRows, kWords,
                              load_up_to(row + upper, features - upper));
      }
      BfloatPair* to =
          weight +
          ((plane * potential_.num_labels + neighbour) * receiver_tiles_ + tile) * kTileElements;
      for (auto& of_summand : split) {
        Vec<int32_t> words[kTileRows];
        std::memcpy(words, of_summand, sizeof(words));
        transpose_words(words);
        for (int64_t i = 0; i < kTileRows; ++i) store(to + i * kTileRows, words[i]);
        to += weight_words();
      }
    }
  }

  GraphView graph_;
  AnyFactoredPotential potential_;
  TileNodes nodes_;
  int64_t receiver_tiles_;
  Buffer<BfloatPair> weight_along_, weight_against_;  // [summand], see TileDirection
  Buffer<float> bias_, bias_transposed_;              // [K, K]
};

// Receives the messages of a block of nodes; one per thread.
template <int Summands>
class TileReceiver {
 public:
  using Value = float;
  using Potential = TilePotential<Summands>;
  struct Coefficients {  // reads marginals as they are
    Coefficients(int64_t, int64_t) {}
    void set(int64_t, const float*) {}
  };
  using Scope = TileScope;
  static constexpr int64_t kPartPlanes = std::numeric_limits<int64_t>::max();  // all in a product
  static Potential pack(const GraphView& graph, const AnyFactoredPotential& potential) {
    return {graph, potential};
  }

  // Two tiles of nodes share a pass over the weight where there are blocks enough.
  static int64_t block_size(int64_t num_nodes, int64_t, int64_t num_blocks) {
    return num_nodes >= 2 * kTileRows * num_blocks ? 2 * kTileRows : kTileRows;
  }

  explicit TileReceiver(const MessageShape& shape)
      : num_labels_(shape.num_labels),
        label_tiles_(ceil_div(shape.num_labels, kTileRows)),
        nodes_(round_up(shape.block_nodes, kTileRows)),
        terms_row_(round_up(shape.num_features, kTilePlane) * shape.num_labels + kTilePlane),
        accumulator_(num_labels_, ceil_div(shape.num_features, kTilePlane)),
        terms_(Summands * nodes_ * terms_row_),
        products_(nodes_ * label_tiles_ * kTileRows),
        bias_scratch_(2 * num_labels_) {}

  // The messages that nodes first..first+count-1 receive over a potential, in both directions.
  void receive(const Potential& potential, const PlaneRange&,
               const float* marginals,  // [N, K]
               const Coefficients&, int64_t first, int64_t count,
               float* messages) {  // [count, K]
    std::fill_n(messages, count * num_labels_, 0.f);
    const int64_t columns = label_tiles_ * kTileRows;
    const int64_t terms_words = nodes_ * terms_row_ / 2;
    for (const TileDirection& direction : {potential.along(), potential.against()}) {
      for (int64_t m = 0; m < count; ++m) {
        accumulator_.run(direction.of_node(first + m, potential.row()), potential.planes(),
                         marginals, [&](int64_t plane, const float* sums) {
                           bfloat16* to =
                               terms_.get() + m * terms_row_ + plane * num_labels_ * kTilePlane;
                           for (int64_t i = 0; i < num_labels_ * kTilePlane; i += kTileRows) {
                             store_split<Summands>(to + i, terms_words, load(sums + i));
                           }
                         });
      }
      multiply_tiles_into<Summands>(
          ceil_div(count, kTileRows), label_tiles_, potential.planes() * num_labels_,
          {terms_.get(), kTileRows * terms_row_ / 2, kTileRows, terms_row_ / 2, terms_words},
          {direction.weight, kTileElements, label_tiles_ * kTileElements, kTileRows,
           potential.weight_words()},
          products_.get(), columns, true);
      for (int64_t m = 0; m < count; ++m) {
        for (int64_t k = 0; k < num_labels_; ++k) {
          messages[m * num_labels_ + k] += products_.get()[m * columns + k];
        }
      }
      receive_bias(direction.row_offsets, direction.neighbours, direction.bias, num_labels_,
                   marginals, first, count, bias_scratch_.get(), messages);
    }
  }

 private:
  int64_t num_labels_, label_tiles_;
  int64_t nodes_;  // of a block, padded to whole tiles
  int64_t terms_row_;
  TileAccumulator<Summands> accumulator_;
  Buffer<bfloat16> terms_;      // [summand, nodes, terms_row]: A as [plane, K, kTilePlane]
  Buffer<float> products_;      // [nodes, label tiles * 16]
  Buffer<float> bias_scratch_;  // [2, K]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
