// Messages of bfloat16 potentials by matrix tiles (design: "mean field without the K x K tables").
//
// For a node and one direction,
//   A[j, d] = sum over neighbours q of  Q_q[j] * relu(self + other_q)[d]
// is a product Q' H over pairs of neighbours, 32 features at a time, H formed on the way. Then the
// A of a block of nodes, rounded to bfloat16, are contracted with the weight in one product over
// all neighbour labels and features.
#pragma once

#include "cpu/messages.h"
#include "cpu/tiles.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Features that are formed at a time: two tiles.
constexpr int64_t kTilePlane = 2 * kTileRows;

// One direction of a potential; see Direction.
struct TileDirection {
  const int64_t* row_offsets;  // [N + 1]
  const int32_t* neighbours;   // [E]
  const float* self;           // [N, row]
  const float* other;          // [N, row]
  const BfloatPair* weight;  // tiles [plane, K neighbour][receiver tile][16 features, 16 receivers]
  const float* bias;         // [K neighbour, K receiver]
};

class TilePotential {
 public:
  TilePotential(const GraphView& graph, const FactoredPotential<bfloat16>& potential)
      : graph_(graph),
        potential_(potential),
        planes_(ceil_div(potential.num_features, kTilePlane)),
        row_(planes_ * kTilePlane + kTileRows),  // not a power of two
        receiver_tiles_(ceil_div(potential.num_labels, kTileRows)),
        source_(graph.num_nodes * row_),
        target_(graph.num_nodes * row_),
        weight_along_(weight_elements()),
        weight_against_(weight_elements()),
        bias_(potential.num_labels * potential.num_labels),
        bias_transposed_(potential.num_labels * potential.num_labels) {
    const int64_t K = potential.num_labels;
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t j = 0; j < K; ++j) {
        bias_.get()[k * K + j] = bias_transposed_.get()[j * K + k] = potential.bias[k * K + j];
      }
    }
  }

  int64_t planes() const { return planes_; }
  int64_t row() const { return row_; }

  // Fills one plane of every array. Call for each plane, from any thread, before the rest.
  void pack(int64_t plane) {
    const int64_t K = potential_.num_labels, D = potential_.num_features;
    pack_nodes(potential_.source, plane, source_.get());
    pack_nodes(potential_.target, plane, target_.get());
    for (int64_t j = 0; j < K; ++j) {
      pack_weight(potential_.weight + j * D, K * D, plane, j, weight_along_.get());
      pack_weight(potential_.weight + j * K * D, D, plane, j, weight_against_.get());
    }
  }

  TileDirection along() const {
    return {graph_.row_offsets, graph_.targets,      source_.get(),
            target_.get(),      weight_along_.get(), bias_transposed_.get()};
  }
  TileDirection against() const {
    return {graph_.reverse_row_offsets,
            graph_.reverse_sources,
            target_.get(),
            source_.get(),
            weight_against_.get(),
            bias_.get()};
  }

 private:
  int64_t weight_elements() const {
    return planes_ * potential_.num_labels * receiver_tiles_ * kTileElements;
  }

  void pack_nodes(const bfloat16* features,  // [N, D]
                  int64_t plane,
                  float* rows) {  // [N, row]
    const int64_t D = potential_.num_features;
    for (int64_t node = 0; node < graph_.num_nodes; ++node) {
      for (int64_t d = plane * kTilePlane; d < (plane + 1) * kTilePlane; d += kTileRows) {
        const int64_t left = std::max<int64_t>(D - d, 0);
        store(rows + node * row_ + d, load_up_to(features + node * D + std::min(d, D), left));
      }
    }
  }

  // The rows of one neighbour label, receivers `step` apart.
  void pack_weight(const bfloat16* rows, int64_t step, int64_t plane, int64_t neighbour,
                   BfloatPair* weight) {
    const int64_t first = plane * kTilePlane;
    const int64_t features = std::min(kTilePlane, potential_.num_features - first);
    for (int64_t tile = 0; tile < receiver_tiles_; ++tile) {
      Vec<int32_t> words[kTileRows];
      for (int64_t i = 0; i < kTileRows; ++i) {
        const int64_t receiver = tile * kTileRows + i;
        bfloat16 row[kTilePlane] = {};
        if (receiver < potential_.num_labels) {
          std::copy_n(rows + receiver * step + first, features, row);
        }
        std::memcpy(&words[i], row, sizeof(row));
      }
      transpose_words(words);
      BfloatPair* to =
          weight +
          ((plane * potential_.num_labels + neighbour) * receiver_tiles_ + tile) * kTileElements;
      for (int64_t i = 0; i < kTileRows; ++i) store(to + i * kTileRows, words[i]);
    }
  }

  GraphView graph_;
  FactoredPotential<bfloat16> potential_;
  int64_t planes_, row_, receiver_tiles_;
  Buffer<float> source_, target_;  // [N, row]
  Buffer<BfloatPair> weight_along_, weight_against_;
  Buffer<float> bias_, bias_transposed_;  // [K, K]
};

// Receives the messages of a block of nodes; one per thread.
class TileReceiver {
 public:
  using Value = float;
  using Potential = TilePotential;
  using Scope = TileScope;
  static Potential pack(const GraphView& graph, const AnyFactoredPotential& potential) {
    return {graph, potential.as<bfloat16>()};
  }

  // Two tiles of nodes share a pass over the weight where every thread has several blocks.
  static int64_t block_size(int64_t num_nodes, int num_threads) {
    return num_nodes >= 16 * kTileRows * num_threads ? 2 * kTileRows : kTileRows;
  }

  explicit TileReceiver(const MessageShape& shape)
      : num_labels_(shape.num_labels),
        label_tiles_(ceil_div(shape.num_labels, kTileRows)),
        node_tiles_(ceil_div(shape.block_nodes, kTileRows)),
        terms_row_(round_up(shape.num_features, kTilePlane) * shape.num_labels + kTilePlane),
        coefficients_(label_tiles_ * kPartSteps * kTileElements),
        hidden_(2 * kPartSteps * kTileElements),
        sums_(label_tiles_ * kTileRows * round_up(shape.num_features, kTilePlane)),
        terms_(node_tiles_ * kTileRows * terms_row_),
        messages_(node_tiles_ * kTileRows * label_tiles_ * kTileRows),
        bias_scratch_(2 * num_labels_),
        energies_(shape.block_nodes * num_labels_) {}

  // Room for the energies of a block, [block, K].
  float* energies() { return energies_.get(); }

  // Adds to energies the messages that nodes first..first+count-1 receive over one potential, in
  // both directions.
  void receive(const TilePotential& potential,
               const float* marginals,  // [N, K]
               int64_t first, int64_t count,
               float* energies) {  // [count, K]
    const int64_t columns = label_tiles_ * kTileRows;
    for (const TileDirection& direction : {potential.along(), potential.against()}) {
      for (int64_t m = 0; m < count; ++m) {
        form_terms(direction, potential, first + m, marginals, terms_.get() + m * terms_row_);
      }
      multiply_tiles_into(
          ceil_div(count, kTileRows), label_tiles_, potential.planes() * num_labels_,
          {terms_.get(), kTileRows * terms_row_ / 2, kTileRows, terms_row_ / 2},
          {direction.weight, kTileElements, label_tiles_ * kTileElements, kTileRows},
          messages_.get(), columns, true);
      for (int64_t m = 0; m < count; ++m) {
        for (int64_t k = 0; k < num_labels_; ++k) {
          energies[m * num_labels_ + k] += messages_.get()[m * columns + k];
        }
      }
      receive_bias(direction.row_offsets, direction.neighbours, direction.bias, num_labels_,
                   marginals, first, count, bias_scratch_.get(), energies);
    }
  }

 private:
  static constexpr int64_t kPartSteps = 16;  // neighbours whose hidden vectors stay in L1, by 32

  // A of a node, rounded: [plane, K, kTilePlane].
  void form_terms(const TileDirection& direction, const TilePotential& potential, int64_t node,
                  const float* marginals, bfloat16* terms) {
    const int32_t* neighbours = direction.neighbours + direction.row_offsets[node];
    const int64_t degree = direction.row_offsets[node + 1] - direction.row_offsets[node];
    const int64_t steps = ceil_div(degree, kTileDepth);
    if (steps == 0) {
      std::fill_n(terms, potential.planes() * num_labels_ * kTilePlane, bfloat16(0.0f));
      return;
    }
    const float* self = direction.self + node * potential.row();
    for (int64_t part = 0; part < steps; part += kPartSteps) {
      const int64_t part_steps = std::min(kPartSteps, steps - part);
      const bool last = part + part_steps == steps;
      const int32_t* of_part = neighbours + part * kTileDepth;
      const int64_t count = degree - part * kTileDepth;
      pack_coefficients(of_part, count, part_steps, marginals);
      for (int64_t plane = 0; plane < potential.planes(); ++plane) {
        form_hidden(of_part, count, part_steps, self + plane * kTilePlane,
                    direction.other + plane * kTilePlane, potential.row());
        float* sums = sums_.get() + plane * label_tiles_ * kTileRows * kTilePlane;
        multiply_tiles_into(
            label_tiles_, kTilePlane / kTileRows, part_steps,
            {coefficients_.get(), kPartSteps * kTileElements, kTileElements, kTileRows},
            {hidden_.get(), kTileElements, 2 * kTileElements, kTileRows}, sums, kTilePlane,
            part == 0);
        if (!last) continue;
        for (int64_t j = 0; j < num_labels_; ++j) {
          auto* to = reinterpret_cast<BfloatPair*>(terms + (plane * num_labels_ + j) * kTilePlane);
          for (int64_t d = 0; d < kTilePlane; d += kTileRows) {
            store_bfloat16(to + d / 2, load(sums + j * kTilePlane + d));
          }
        }
      }
    }
  }

  // Marginals as tiles [label tile][step][16 labels, 16 pairs of neighbours]; zeros past the last.
  void pack_coefficients(const int32_t* neighbours, int64_t count, int64_t steps,
                         const float* marginals) {
    const auto of_neighbour = [&](int64_t i, int64_t label) {
      const float* row = marginals + neighbours[std::min(i, count - 1)] * num_labels_;
      return i < count ? load_up_to(row + label, num_labels_ - label) : Vec<float>{};
    };
    for (int64_t tile = 0; tile < label_tiles_; ++tile) {
      for (int64_t step = 0; step < steps; ++step) {
        Vec<int32_t> words[kTileRows];
        for (int64_t i = 0; i < kTileRows; ++i) {
          const int64_t edge = step * kTileDepth + 2 * i;
          words[i] = pack_pairs(of_neighbour(edge, tile * kTileRows),
                                of_neighbour(edge + 1, tile * kTileRows));
        }
        transpose_words(words);
        BfloatPair* to = coefficients_.get() + (tile * kPartSteps + step) * kTileElements;
        for (int64_t i = 0; i < kTileRows; ++i) store(to + i * kTileRows, words[i]);
      }
    }
  }

  // Hidden vectors as tiles [step][feature tile][16 pairs of neighbours, 16 features]. Past the
  // last neighbour its own stand again, for coefficients of zero.
  void form_hidden(const int32_t* neighbours, int64_t count, int64_t steps, const float* self,
                   const float* other, int64_t row) {
    const Vec<float> low = load(self), high = load(self + kTileRows);
    for (int64_t i = 0; i < steps * kTileRows; ++i) {
      const float* first = other + neighbours[std::min(2 * i, count - 1)] * row;
      const float* second = other + neighbours[std::min(2 * i + 1, count - 1)] * row;
      BfloatPair* to =
          hidden_.get() + i / kTileRows * 2 * kTileElements + i % kTileRows * kTileRows;
      store(to, pack_pairs(relu<float>(low + load(first)), relu<float>(low + load(second))));
      store(to + kTileElements, pack_pairs(relu<float>(high + load(first + kTileRows)),
                                           relu<float>(high + load(second + kTileRows))));
    }
  }

  int64_t num_labels_, label_tiles_, node_tiles_, terms_row_;
  Buffer<BfloatPair> coefficients_;  // see pack_coefficients()
  Buffer<BfloatPair> hidden_;        // see form_hidden()
  Buffer<float> sums_;               // [plane, label tiles * 16, kTilePlane]
  Buffer<bfloat16> terms_;           // [node tiles * 16, terms_row]
  Buffer<float> messages_;           // [node tiles * 16, label tiles * 16]
  Buffer<float> bias_scratch_;       // [2, K]
  Buffer<float> energies_;           // [block, K]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
