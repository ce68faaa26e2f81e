// The piecewise loss of a factored potential and its gradient.
//
// It works on tiles of edges. Within a tile every thread takes blocks of edges through
//   hidden = relu(source + target),  energies = hidden W' + b,  softmax,  hidden gradient = G W,
// then all threads share out the sums over the tile's edges by the rows and columns they own, so
// the result does not depend on the number of threads. Only a tile of energies is ever alive.
// The three products skip the zeros of the hidden vectors (masked_product.h).
#pragma once

#include <cmath>
#include <limits>

#include "cpu/masked_product.h"
#include "ops/pairwise_nll.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

template <typename T>
class FactoredLoss {
 public:
  FactoredLoss(const GraphView& graph, const FactoredPotential<T>& potential,
               const EdgeLabels& labels, const T* edge_weight, T* losses,
               const AnyFactoredGradient* gradient, int num_threads)
      : graph_(graph),
        potential_(potential),
        labels_(labels),
        edge_weight_(edge_weight),
        losses_(losses),
        with_gradient_(gradient != nullptr),
        num_threads_(num_threads),
        K_(potential.num_labels),
        D_(potential.num_features),
        pairs_(K_ * K_),
        words_(ceil_div(D_, kMaskBits)),
        // A vector more, lest the rows of a block compete for the same cache sets.
        hidden_row_(words_ * kMaskBits + kLanes<T>),
        tile_edges_(choose_tile_edges()),
        tile_(tile_edges_),
        weight_(words_ * kMaskBits, pairs_),
        hidden_(tile_edges_ * hidden_row_),
        masks_(tile_edges_ * words_),
        energies_(tile_edges_, pairs_),
        edge_masks_(with_gradient_ ? tile_edges_ * words_ : 0),
        hidden_gradient_(with_gradient_ ? tile_edges_ * D_ : 0),
        weight_gradient_(with_gradient_ ? D_ : 0, pairs_),
        bias_gradient_(round_up(pairs_, kLanes<T>)),
        lane_sums_(num_threads, with_gradient_ ? kBlockEdges * kMaskBits * V : 0) {
    if (with_gradient_) {
      grad_source_ = static_cast<T*>(gradient->source);
      grad_target_ = static_cast<T*>(gradient->target);
      grad_weight_ = static_cast<T*>(gradient->weight);
      grad_bias_ = static_cast<T*>(gradient->bias);
    }
  }

  void run() {
    int64_t edge = 0, node = 0, tile_size = 0;
#pragma omp parallel num_threads(num_threads_)
    {
      initialise();
      while (true) {
#pragma omp single
        tile_size = collect_tile(edge, node);
        if (tile_size == 0) break;
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < tile_size; first += kBlockEdges) {
          const int64_t count = std::min(kBlockEdges, tile_size - first);
          compute_hidden(first, count);
          compute_energies(first, count);
          for (int64_t i = first; i < first + count; ++i) compute_loss(i);
          if (with_gradient_) differentiate_hidden(first, count);
        }
        if (with_gradient_) reduce_tile(tile_size);
      }
      if (with_gradient_) finish_weight();
    }
  }

 private:
  static constexpr int64_t V = kLanes<T>;
  static constexpr int64_t kBlockEdges = 2 * kMaskBits;     // of one thread's turn
  static constexpr int64_t kBlockFeatures = 2 * kMaskBits;  // likewise, in sums over a tile

  struct TileEdge {
    int64_t edge;
    int64_t source;
    int64_t target;
  };

  // A tile is sized to stay in a last-level cache, with several blocks for every thread.
  int64_t choose_tile_edges() const {
    constexpr int64_t kTileBytes = 16 << 20;
    constexpr int64_t kMostEdges = 24 * kBlockEdges;
    const int64_t edge_bytes = (pairs_ + 2 * D_) * static_cast<int64_t>(sizeof(T));
    const int64_t least = 2 * kBlockEdges * num_threads_;
    const int64_t edges = std::clamp(kTileBytes / edge_bytes / kBlockEdges * kBlockEdges, least,
                                     std::max(kMostEdges, least));
    return round_up(std::clamp<int64_t>(graph_.num_edges, 1, edges), kMaskBits);
  }

  void initialise() {
#pragma omp for schedule(static) nowait
    for (int64_t e = 0; e < graph_.num_edges; ++e) losses_[e] = 0;
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < weight_.count(); ++panel) pack_weight(panel);
    if (with_gradient_) {
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < graph_.num_nodes * D_; ++i) grad_source_[i] = grad_target_[i] = 0;
#pragma omp for schedule(static) nowait
      for (int64_t panel = 0; panel < weight_.count(); ++panel) {
        std::fill_n(weight_gradient_.at(panel, 0), D_ * weight_.width(panel), T(0));
        std::fill_n(bias_gradient_.get() + weight_.column(panel), weight_.width(panel), T(0));
      }
    }
#pragma omp barrier
  }

  // W' [D, K * K], zero in the padding.
  void pack_weight(int64_t panel) {
    const int64_t width = weight_.width(panel);
    const int64_t column = weight_.column(panel);
    std::fill_n(weight_.at(panel, 0), words_ * kMaskBits * width, T(0));
    for (int64_t d = 0; d < D_; d += V) {
      for (int64_t i = 0; i < std::min(width, pairs_ - column); ++i) {
        const T* from = potential_.weight + (column + i) * D_;
        for (int64_t f = d; f < std::min(d + V, D_); ++f) weight_.at(panel, f)[i] = from[f];
      }
    }
  }

  // Lists the next valid edges and returns how many there are; 0 at the end.
  int64_t collect_tile(int64_t& edge, int64_t& node) {
    int64_t size = 0;
    for (; edge < graph_.num_edges && size < tile_edges_; ++edge) {
      while (graph_.row_offsets[node + 1] <= edge) ++node;
      const int64_t target = graph_.targets[edge];
      if (labels_.labels[node] == labels_.ignore_index ||
          labels_.labels[target] == labels_.ignore_index) {
        continue;
      }
      tile_.get()[size++] = {edge, node, target};
    }
    return size;
  }

  // Hidden vectors of a block, and their masks by edge and by feature.
  void compute_hidden(int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      const TileEdge& edge = tile_.get()[i];
      const T* source = potential_.source + edge.source * D_;
      const T* target = potential_.target + edge.target * D_;
      T* hidden = hidden_.get() + i * hidden_row_;
      uint32_t* mask = masks_.get() + i * words_;
      std::fill_n(mask, words_, 0);
      for (int64_t d = 0; d < D_; d += V) {
        const Vec<T> h = relu<T>(load_up_to(source + d, D_ - d) + load_up_to(target + d, D_ - d));
        store(hidden + d, h);
        mask[d / kMaskBits] |= nonzero_bits<T>(h) << d % kMaskBits;
      }
    }
    if (!with_gradient_) return;
    for (int64_t i = first; i < first + count; i += kMaskBits) {
      const int64_t edges = std::min(kMaskBits, first + count - i);
      for (int64_t word = 0; word < words_; ++word) {
        uint32_t* bits = edge_masks(i / kMaskBits, word * kMaskBits);
        std::fill_n(bits, kMaskBits, 0);
        for (int64_t n = 0; n < edges; ++n) bits[n] = masks_.get()[(i + n) * words_ + word];
        transpose_bits(bits);
      }
    }
  }

  // Masks of a feature's non-zero edges, of the group-th kMaskBits edges of the tile.
  uint32_t* edge_masks(int64_t group, int64_t feature) {
    return edge_masks_.get() + group * words_ * kMaskBits + feature;
  }

  void compute_energies(int64_t first, int64_t count) {
    for (int64_t panel = 0; panel < weight_.count(); ++panel) {
      const int64_t width = weight_.width(panel);
      T* energies = energies_.at(panel, first);
      // An infinite energy in the padding has no weight in the softmax.
      for (int64_t n = 0; n < width; ++n) {
        const int64_t pair = weight_.column(panel) + n;
        energies[n] = pair < pairs_ ? potential_.bias[pair] : std::numeric_limits<T>::infinity();
      }
      for (int64_t i = 1; i < count; ++i) std::copy_n(energies, width, energies + i * width);
      with_panel_vectors(weight_.vectors(panel), [&](auto vectors) {
        for (int64_t word = 0; word < words_; ++word) {
          masked_product<vectors()>(count, hidden_.get() + first * hidden_row_ + word * kMaskBits,
                                    hidden_row_, int64_t(1), masks_.get() + first * words_ + word,
                                    words_, weight_.at(panel, word * kMaskBits), energies);
        }
      });
    }
  }

  // Turns the energies of an edge into its loss and, for gradients, into dL/denergies in place.
  void compute_loss(int64_t i) {
    const TileEdge& edge = tile_.get()[i];
    const int64_t truth = labels_.labels[edge.source] * K_ + labels_.labels[edge.target];
    T* truth_place = nullptr;
    Vec<T> lowest_lanes = load(energies_.at(0, i));
    for_vectors(i, [&](T* energies, int64_t column) {
      const Vec<T> v = load(energies);
      lowest_lanes = v < lowest_lanes ? v : lowest_lanes;
      if (column <= truth && truth < column + V) truth_place = energies + (truth - column);
    });
    const T truth_energy = *truth_place;
    const T lowest = -horizontal_max<T>(-lowest_lanes);
    Vec<T> sum_lanes = {};
    for_vectors(i, [&](T* energies, int64_t) {
      const Vec<T> v = exp_nonpositive(lowest - load(energies));
      store(energies, v);
      sum_lanes += v;
    });
    const T sum = horizontal_sum<T>(sum_lanes);
    losses_[edge.edge] = truth_energy - lowest + std::log(sum);
    if (with_gradient_) {
      const T weight = edge_weight_ == nullptr ? T(1) : edge_weight_[edge.edge];
      const T scale = -weight / sum;
      for_vectors(i, [&](T* energies, int64_t) { store(energies, scale * load(energies)); });
      *truth_place += weight;
    }
  }

  // Calls function(energies, column) for every vector of energies of an edge.
  template <typename Function>
  void for_vectors(int64_t i, Function&& function) {
    for (int64_t panel = 0; panel < energies_.count(); ++panel) {
      T* energies = energies_.at(panel, i);
      for (int64_t n = 0; n < energies_.width(panel); n += V) {
        function(energies + n, energies_.column(panel) + n);
      }
    }
  }

  // dL/d(source + target) of a block: dL/denergies times W, where hidden > 0.
  void differentiate_hidden(int64_t first, int64_t count) {
    T* lane_sums = lane_sums_.mine().get();  // [kBlockEdges, kMaskBits, lanes]
    for (int64_t word = 0; word < words_; ++word) {
      for (int64_t panel = 0; panel < weight_.count(); ++panel) {
        with_panel_vectors(weight_.vectors(panel), [&](auto vectors) {
          masked_dots<vectors()>(count, energies_.at(panel, first),
                                 masks_.get() + first * words_ + word, words_,
                                 weight_.at(panel, word * kMaskBits), panel == 0, lane_sums);
        });
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t d = word * kMaskBits; d < std::min((word + 1) * kMaskBits, D_); d += V) {
          const Vec<T> hidden = load(hidden_.get() + (first + i) * hidden_row_ + d);
          const Vec<T> sums = horizontal_sums(lane_sums + (i * kMaskBits + d % kMaskBits) * V);
          store_up_to(hidden_gradient_.get() + (first + i) * D_ + d, D_ - d,
                      where_positive<T>(hidden, sums));
        }
      }
    }
  }

  // Sums over the edges of a tile. Each turn of the loop owns what it writes.
  void reduce_tile(int64_t tile_size) {
    const int64_t blocks = ceil_div(D_, kBlockFeatures);
    const int64_t panels = weight_.count();
#pragma omp for schedule(dynamic)
    for (int64_t turn = 0; turn < blocks * (panels + 1); ++turn) {
      const int64_t panel = turn / blocks;
      const int64_t feature = turn % blocks * kBlockFeatures;
      const int64_t features = std::min(kBlockFeatures, D_ - feature);
      if (panel < panels) {
        reduce_weight(panel, feature, features, tile_size);
        if (feature == 0) reduce_bias(panel, tile_size);
      } else {
        reduce_nodes(feature, features, tile_size);
      }
    }
  }

  void reduce_weight(int64_t panel, int64_t feature, int64_t features, int64_t tile_size) {
    with_panel_vectors(weight_.vectors(panel), [&](auto vectors) {
      for (int64_t i = 0; i < tile_size; i += kMaskBits) {
        masked_product<vectors()>(features, hidden_.get() + i * hidden_row_ + feature, int64_t(1),
                                  hidden_row_, edge_masks(i / kMaskBits, feature), int64_t(1),
                                  energies_.at(panel, i), weight_gradient_.at(panel, feature));
      }
    });
  }

  void reduce_bias(int64_t panel, int64_t tile_size) {
    T* sum = bias_gradient_.get() + weight_.column(panel);
    for (int64_t i = 0; i < tile_size; ++i) {
      const T* edge_gradient = energies_.at(panel, i);
      for (int64_t n = 0; n < weight_.width(panel); n += V) {
        store(sum + n, load(sum + n) + load(edge_gradient + n));
      }
    }
  }

  void reduce_nodes(int64_t feature, int64_t features, int64_t tile_size) {
    for (int64_t i = 0; i < tile_size; ++i) {
      const TileEdge& edge = tile_.get()[i];
      const T* edge_gradient = hidden_gradient_.get() + i * D_ + feature;
      T* source = grad_source_ + edge.source * D_ + feature;
      T* target = grad_target_ + edge.target * D_ + feature;
      for (int64_t d = 0; d < features; ++d) source[d] += edge_gradient[d];
      for (int64_t d = 0; d < features; ++d) target[d] += edge_gradient[d];
    }
  }

  void finish_weight() {
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < pairs_; ++pair) grad_bias_[pair] = bias_gradient_.get()[pair];
#pragma omp for schedule(dynamic)
    for (int64_t d = 0; d < D_; d += V) {
      for (int64_t panel = 0; panel < weight_.count(); ++panel) {
        const int64_t column = weight_.column(panel);
        for (int64_t i = 0; i < std::min(weight_.width(panel), pairs_ - column); ++i) {
          T* to = grad_weight_ + (column + i) * D_;
          for (int64_t f = d; f < std::min(d + V, D_); ++f) {
            to[f] = weight_gradient_.at(panel, f)[i];
          }
        }
      }
    }
  }

  GraphView graph_;
  FactoredPotential<T> potential_;
  EdgeLabels labels_;
  const T* edge_weight_;  // [E] or null
  T* losses_;             // [E]
  bool with_gradient_;
  int num_threads_;
  int64_t K_, D_, pairs_, words_, hidden_row_, tile_edges_;
  Buffer<TileEdge> tile_;           // [tile]
  Panels<T> weight_;                // [words * kMaskBits, K * K]
  Buffer<T> hidden_;                // [tile, hidden_row]
  Buffer<uint32_t> masks_;          // [tile, words]: bit d of an edge's hidden vector
  Panels<T> energies_;              // [tile, K * K], later dL/denergies
  Buffer<uint32_t> edge_masks_;     // [tile / kMaskBits, words * kMaskBits]
  Buffer<T> hidden_gradient_;       // [tile, D]
  Panels<T> weight_gradient_;       // [D, K * K]
  Buffer<T> bias_gradient_;         // [K * K, padded]
  PerThread<Buffer<T>> lane_sums_;  // [kBlockEdges, kMaskBits, lanes]
  T* grad_source_ = nullptr;        // [N, D]
  T* grad_target_ = nullptr;        // [N, D]
  T* grad_weight_ = nullptr;        // [K, K, D]
  T* grad_bias_ = nullptr;          // [K, K]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
