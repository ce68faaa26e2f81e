// The gradient of messages by matrix tiles; what it is made of stands at MessageGradient
// (message_gradient.h). With c_q = (Q_q, grad_q), the 2K coefficients that a neighbour brings,
//   B_p = (grad_p, Q_p) W,  dL/dh_pq = c_q B_p,  A_p = sum_q c_q' h_pq,  dL/dW = (grad, Q)' A
// are products of 32 features at a time. Planes are independent, so that nothing is reduced across
// threads, and a turn of several is the same as several turns.
#pragma once

#include "cpu/message_gradient.h"
#include "cpu/tile_accumulate.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// The coefficients of the nodes as rows of operands.
template <int Summands>
class TileCoefficients {
 public:
  TileCoefficients(int64_t num_nodes, int64_t num_labels, const MessageTerms<float>& message)
      : num_nodes_(num_nodes),
        terms_(2 * num_labels),
        row_(round_up(terms_, kTileDepth)),
        message_(message),
        rows_(Summands * num_nodes * row_) {}

  const MessageTerms<float>& message() const { return message_; }
  int64_t row() const { return row_; }
  int64_t steps() const { return row_ / kTileDepth; }

  // Rounds them; call in parallel.
  void round() const {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < num_nodes_; ++p) {
      for (int64_t c = 0; c < row_; c += kTileRows) {
        const int64_t left = std::max<int64_t>(terms_ - c, 0);
        store_split<Summands>(
            rows_.get() + p * row_ + c, num_nodes_ * row_ / 2,
            load_up_to(message_.coefficients + p * terms_ + std::min(c, terms_), left));
      }
    }
  }

  // Copies the rows of some nodes, summands remainder_step words apart.
  void gather(const int32_t* nodes, int64_t count, bfloat16* to, int64_t remainder_step) const {
    for (int summand = 0; summand < Summands; ++summand) {
      const bfloat16* rows = rows_.get() + summand * num_nodes_ * row_;
      bfloat16* out = to + 2 * summand * remainder_step;
      for (int64_t i = 0; i < count; ++i) std::copy_n(rows + nodes[i] * row_, row_, out + i * row_);
    }
  }

 private:
  int64_t num_nodes_, terms_, row_;
  MessageTerms<float> message_;
  Buffer<bfloat16> rows_;  // [summand, N, row]
};

// Gradients of some planes at a time; one per thread.
template <int Summands>
class TileMessageGradient {
 public:
  static constexpr int64_t kMostPlanes = 4;  // that share the rounding of a node's coefficients

  TileMessageGradient(const GraphView& graph, const AnyFactoredPotential& potential,
                      int64_t planes_of_turn)
      : graph_(graph),
        potential_(potential),
        K_(potential.num_labels),
        label_tiles_(ceil_div(K_, kTileRows)),
        label_steps_(ceil_div(K_, kTileDepth)),
        coefficient_steps_(ceil_div(2 * K_, kTileDepth)),
        row_(planes_of_turn * kTilePlane),
        accumulator_(2 * K_, planes_of_turn),
        weight_(Summands * weight_words()),
        own_rows_(2 * Summands * own_words()),
        own_pairs_(Summands * label_tiles_ * kTileElements),
        bracket_sums_(kTileRows * 2 * plane_columns()),
        brackets_(Summands * bracket_words()),
        rows_(Summands * kPartEdges * coefficient_steps_ * kTileDepth),
        edge_gradient_(kPartEdges * kTilePlane),
        terms_(Summands * terms_words()),
        source_gradient_(graph.num_nodes * row_),
        target_gradient_(graph.num_nodes * row_),
        weight_gradient_(planes_of_turn * weight_plane()) {
    // The padding of the labels stays as it is.
    std::fill_n(brackets_.get(), Summands * bracket_words(), BfloatPair{});
  }

  // Gradients of planes first_plane..first_plane+planes-1, at most planes_of_turn.
  void run(const TileNodes& nodes, int64_t first_plane, int64_t planes,
           const std::vector<TileCoefficients<Summands>>& messages,
           const AnyFactoredGradient& gradient) {
    const int64_t first_feature = first_plane * kTilePlane;
    std::fill_n(source_gradient_.get(), graph_.num_nodes * row_, 0.0f);
    std::fill_n(target_gradient_.get(), graph_.num_nodes * row_, 0.0f);
    std::fill_n(weight_gradient_.get(), planes * weight_plane(), 0.0f);
    for (int64_t v = 0; v < planes; ++v) pack_weight(first_plane + v, v);
    for (const TileCoefficients<Summands>& message : messages) {
      for (int64_t first = 0; first < graph_.num_nodes; first += kTileRows) {
        differentiate(nodes, first_plane, planes, message, first,
                      std::min(kTileRows, graph_.num_nodes - first));
      }
    }
    write(first_feature, planes, gradient);
  }

 private:
  static constexpr int64_t kPartEdges = 4 * kTileDepth;  // whose gradients stay in L1

  int64_t planes_of_turn() const { return row_ / kTilePlane; }
  int64_t plane_columns() const { return K_ * kTilePlane; }
  int64_t weight_plane() const { return label_tiles_ * kTileRows * plane_columns(); }
  // The sizes of one summand of the operands, in words.
  int64_t weight_words() const { return planes_of_turn() * label_steps_ * 2 * K_ * kTileElements; }
  int64_t own_words() const { return 2 * kTileElements * label_steps_; }
  int64_t bracket_words() const {
    return planes_of_turn() * kTileRows * coefficient_steps_ * 2 * kTileElements;
  }
  int64_t terms_words() const { return planes_of_turn() * 2 * K_ * kTileElements; }

  // Adds the gradients of one message through the nodes first..first+count-1.
  void differentiate(const TileNodes& nodes, int64_t first_plane, int64_t planes,
                     const TileCoefficients<Summands>& coefficients, int64_t first, int64_t count) {
    const int64_t first_feature = first_plane * kTilePlane;
    const MessageTerms<float>& message = coefficients.message();
    pack_own(message.grad_messages + first * K_, message.marginals + first * K_, count);
    for (int64_t v = 0; v < planes; ++v) form_brackets(v, count);
    for (int64_t m = 0; m < kTileRows; ++m) {
      if (m >= count) {
        clear_terms(m);
        continue;
      }
      const int64_t node = first + m, edge = graph_.row_offsets[node];
      const TileNeighbours neighbours = {graph_.targets + edge, graph_.row_offsets[node + 1] - edge,
                                         nodes.source() + node * nodes.row() + first_feature,
                                         nodes.target() + first_feature, nodes.row()};
      differentiate_hidden(neighbours, planes, m, coefficients,
                           source_gradient_.get() + node * row_);
      accumulator_.run(neighbours, planes, message.coefficients,
                       [&](int64_t v, const float* sums) { pack_terms(v, m, sums); });
    }
    for (int64_t v = 0; v < planes; ++v) {
      multiply_tiles_into<Summands>(
          label_tiles_, 2 * K_, 1,
          {own_pairs_.get(), kTileElements, 0, kTileRows, label_tiles_ * kTileElements},
          {terms_.get() + v * 2 * K_ * kTileElements, kTileElements, 0, kTileRows, terms_words()},
          weight_gradient_.get() + v * weight_plane(), plane_columns(), false);
    }
  }

  // One plane of the weight as tiles [label step][K neighbour, 2][16 pairs of labels, 16 features].
  void pack_weight(int64_t plane, int64_t v) {
    dispatch_tile_dtype(potential_.dtype, [&](auto tag) {
      const auto* weight = potential_.as<decltype(tag)>().weight;
      const int64_t D = potential_.num_features;
      const auto row = [&](int64_t k, int64_t j, int64_t d) {
        return k < K_ && d < D ? load_up_to(weight + (k * K_ + j) * D + d, D - d) : Vec<float>{};
      };
      BfloatPair* to = weight_.get() + v * label_steps_ * 2 * K_ * kTileElements;
      for (int64_t step = 0; step < label_steps_; ++step) {
        for (int64_t column = 0; column < 2 * K_; ++column) {
          const int64_t d = plane * kTilePlane + column % 2 * kTileRows;
          for (int64_t i = 0; i < kTileRows; ++i, to += kTileRows) {
            const int64_t k = step * kTileDepth + 2 * i;
            split_pairs<Summands>(row(k, column / 2, d), row(k + 1, column / 2, d),
                                  [&](int summand, Vec<int32_t> both) {
                                    store(to + summand * weight_words(), both);
                                  });
          }
        }
      }
    });
  }

  // grad_messages and marginals of a block of nodes: as rows of both, [2, 16, label steps * 32],
  // and in pairs as tiles [label tile][16 labels, 16 nodes].
  void pack_own(const float* grad_messages, const float* marginals, int64_t count) {
    const float* values[2] = {grad_messages, marginals};
    const auto of_node = [&](int half, int64_t m, int64_t k) {
      const bool inside = m < count && k < K_;
      return inside ? load_up_to(values[half] + m * K_ + k, K_ - k) : Vec<float>{};
    };
    const int64_t row = label_steps_ * kTileDepth;
    for (int half = 0; half < 2; ++half) {
      for (int64_t m = 0; m < kTileRows; ++m) {
        for (int64_t k = 0; k < row; k += kTileRows) {
          store_split<Summands>(own_rows_.get() + (half * kTileRows + m) * row + k, own_words(),
                                of_node(half, m, k));
        }
      }
    }
    for (int64_t tile = 0; tile < label_tiles_; ++tile) {
      Vec<int32_t> pairs[Summands][kTileRows];
      for (int64_t m = 0; m < kTileRows; ++m) {
        split_pairs<Summands>(of_node(0, m, tile * kTileRows), of_node(1, m, tile * kTileRows),
                              [&](int summand, Vec<int32_t> both) { pairs[summand][m] = both; });
      }
      BfloatPair* to = own_pairs_.get() + tile * kTileElements;
      for (auto& words : pairs) {
        transpose_words(words);
        for (int64_t i = 0; i < kTileRows; ++i) store(to + i * kTileRows, words[i]);
        to += label_tiles_ * kTileElements;
      }
    }
  }

  // B of a block of nodes, rounded: tiles [node][coefficient step, 2][16 pairs, 16 features].
  void form_brackets(int64_t v, int64_t count) {
    const int64_t label_row = label_steps_ * kTileRows;  // in words
    for (int64_t half = 0; half < 2; ++half) {
      multiply_tiles_into<Summands>(
          1, 2 * K_, label_steps_,
          {own_rows_.get() + half * 2 * kTileRows * label_row, 0, kTileRows, label_row,
           own_words()},
          {weight_.get() + v * label_steps_ * 2 * K_ * kTileElements, kTileElements,
           2 * K_ * kTileElements, kTileRows, weight_words()},
          bracket_sums_.get() + half * plane_columns(), 2 * plane_columns(), true);
    }
    for (int64_t m = 0; m < count; ++m) {
      const float* from = bracket_sums_.get() + m * 2 * plane_columns();
      BfloatPair* to = brackets(v, m);
      for (int64_t i = 0; i < K_; ++i) {
        for (int64_t half = 0; half < 2; ++half) {
          const float* even = from + 2 * i * kTilePlane + half * kTileRows;
          BfloatPair* row =
              to + (i / kTileRows * 2 + half) * kTileElements + i % kTileRows * kTileRows;
          split_pairs<Summands>(load(even), load(even + kTilePlane),
                                [&](int summand, Vec<int32_t> both) {
                                  store(row + summand * bracket_words(), both);
                                });
        }
      }
    }
  }
  BfloatPair* brackets(int64_t v, int64_t m) const {
    return brackets_.get() + (v * kTileRows + m) * coefficient_steps_ * 2 * kTileElements;
  }

  // dL/d(self + other) of the edges of a node: added at their targets, and their sum at the node.
  void differentiate_hidden(const TileNeighbours& neighbours, int64_t planes, int64_t m,
                            const TileCoefficients<Summands>& coefficients,
                            float* source_gradient) {  // [row]
    Vec<float> total[kMostPlanes][2];
    for (int64_t v = 0; v < planes; ++v) {
      for (int64_t half = 0; half < 2; ++half) {
        total[v][half] = load(source_gradient + v * kTilePlane + half * kTileRows);
      }
    }
    const int64_t rows_words = kPartEdges * coefficients.row() / 2;
    for (int64_t part = 0; part < neighbours.count; part += kPartEdges) {
      const int64_t count = std::min(kPartEdges, neighbours.count - part);
      const int32_t* nodes = neighbours.nodes + part;
      coefficients.gather(nodes, count, rows_.get(), rows_words);
      for (int64_t v = 0; v < planes; ++v) {
        multiply_tiles_into<Summands>(
            ceil_div(count, kTileRows), 2, coefficient_steps_,
            {rows_.get(), kTileRows * coefficients.row() / 2, kTileRows, coefficients.row() / 2,
             rows_words},
            {brackets(v, m), kTileElements, 2 * kTileElements, kTileRows, bracket_words()},
            edge_gradient_.get(), kTilePlane, true);
        add_where_positive(neighbours, nodes, count, v, total[v]);
      }
    }
    for (int64_t v = 0; v < planes; ++v) {
      for (int64_t half = 0; half < 2; ++half) {
        store(source_gradient + v * kTilePlane + half * kTileRows, total[v][half]);
      }
    }
  }

  void add_where_positive(const TileNeighbours& neighbours, const int32_t* nodes, int64_t count,
                          int64_t v, Vec<float> (&total)[2]) {
    for (int half = 0; half < 2; ++half) {
      const int64_t d = v * kTilePlane + half * kTileRows;
      const Vec<float> self = load(neighbours.self + d);
      Vec<float> sum = total[half];
      for (int64_t i = 0; i < count; ++i) {
        const Vec<float> other = load(neighbours.other + nodes[i] * neighbours.row + d);
        const Vec<float> gradient = where_positive<float>(
            self + other, load(edge_gradient_.get() + i * kTilePlane + half * kTileRows));
        float* of_target = target_gradient_.get() + nodes[i] * row_ + d;
        store(of_target, load(of_target) + gradient);
        sum += gradient;
      }
      total[half] = sum;
    }
  }

  // A of a node, both halves of the coefficients in pairs: row m of tiles [K neighbour, 2][16
  // nodes, 16 features].
  BfloatPair* terms(int64_t v, int64_t column, int64_t m) const {
    return terms_.get() + (v * 2 * K_ + column) * kTileElements + m * kTileRows;
  }
  void pack_terms(int64_t v, int64_t m, const float* sums) {
    for (int64_t column = 0; column < 2 * K_; ++column) {
      const float* of_marginals = sums + column * kTileRows;
      split_pairs<Summands>(load(of_marginals), load(of_marginals + plane_columns()),
                            [&](int summand, Vec<int32_t> both) {
                              store(terms(v, column, m) + summand * terms_words(), both);
                            });
    }
  }
  void clear_terms(int64_t m) {
    for (int64_t tile = 0; tile < Summands * terms_words() / kTileElements; ++tile) {
      store(terms_.get() + tile * kTileElements + m * kTileRows, Vec<int32_t>{});
    }
  }

  void write(int64_t first_feature, int64_t planes, const AnyFactoredGradient& gradient) {
    const int64_t D = potential_.num_features;
    float* grad_source = static_cast<float*>(gradient.source);
    float* grad_target = static_cast<float*>(gradient.target);
    float* grad_weight = static_cast<float*>(gradient.weight);
    for (int64_t i = 0; i < planes * kTilePlane && first_feature + i < D; i += kTileRows) {
      const int64_t d = first_feature + i;
      for (int64_t node = 0; node < graph_.num_nodes; ++node) {
        store_up_to(grad_source + node * D + d, D - d,
                    load(source_gradient_.get() + node * row_ + i));
        store_up_to(grad_target + node * D + d, D - d,
                    load(target_gradient_.get() + node * row_ + i));
      }
      const float* of_plane = weight_gradient_.get() + i / kTilePlane * weight_plane();
      for (int64_t pair = 0; pair < K_ * K_; ++pair) {
        store_up_to(grad_weight + pair * D + d, D - d,
                    load(of_plane + pair * kTilePlane + i % kTilePlane));
      }
    }
  }

  GraphView graph_;
  AnyFactoredPotential potential_;
  int64_t K_, label_tiles_, label_steps_, coefficient_steps_;
  int64_t row_;  // features of a turn
  TileAccumulator<Summands> accumulator_;
  Buffer<BfloatPair> weight_;      // [summand, plane], see pack_weight()
  Buffer<bfloat16> own_rows_;      // [summand], see pack_own()
  Buffer<BfloatPair> own_pairs_;   // [summand], see pack_own()
  Buffer<float> bracket_sums_;     // [16 nodes, 2K, kTilePlane]
  Buffer<BfloatPair> brackets_;    // [summand, plane], see form_brackets()
  Buffer<bfloat16> rows_;          // [summand, kPartEdges, coefficients]
  Buffer<float> edge_gradient_;    // [kPartEdges, kTilePlane]
  Buffer<BfloatPair> terms_;       // [summand, plane], see terms()
  Buffer<float> source_gradient_;  // [N, row]
  Buffer<float> target_gradient_;  // [N, row]
  Buffer<float> weight_gradient_;  // [plane, label tiles * 16, K, kTilePlane]
};

template <int Summands>
void tile_messages_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                            const MessageGradientArguments& arguments,
                            const AnyFactoredGradient& gradient, int num_threads) {
  using Worker = TileMessageGradient<Summands>;
  const int64_t K = potential.num_labels;
  TileNodes nodes(graph, potential);
  Buffer<float> coefficients(arguments.num_messages * graph.num_nodes * 2 * K);
  BiasGradient<float> bias(graph, K, arguments.num_messages);
  const auto terms = message_terms(arguments, graph.num_nodes, K, coefficients.get());
  std::vector<TileCoefficients<Summands>> messages;
  for (const auto& message : terms) messages.emplace_back(graph.num_nodes, K, message);
  const int64_t turn = std::clamp<int64_t>(nodes.planes() / num_threads, 1, Worker::kMostPlanes);
  num_threads = static_cast<int>(std::min<int64_t>(num_threads, ceil_div(nodes.planes(), turn)));
  PerThread<Worker> workers(num_threads, graph, potential, turn);

#pragma omp parallel num_threads(num_threads)
  {
    const TileScope scope;
#pragma omp for schedule(dynamic) nowait
    for (int64_t plane = 0; plane < nodes.planes(); ++plane) nodes.pack(plane);
    join_coefficients(graph.num_nodes, K, terms);
    for (const auto& message : messages) message.round();
    bias.run(terms, static_cast<float*>(gradient.bias));
#pragma omp for schedule(dynamic)
    for (int64_t plane = 0; plane < nodes.planes(); plane += turn) {
      workers.mine().run(nodes, plane, std::min(turn, nodes.planes() - plane), messages, gradient);
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
