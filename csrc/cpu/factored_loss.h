// The piecewise loss of a factored potential and its gradient.
//
// It works on tiles of edges. Within a tile every thread takes blocks of edges through
//   hidden = relu(source + target),  energies = hidden W' + b,  softmax,  hidden gradient = G W,
// or, where there are fewer blocks than threads, all threads share out the columns, edges and words
// of features of each step. Then they share out the sums over the tile's edges by the rows and
// columns they own. The result does not depend on the number of threads. Only a tile of energies is
// ever alive.
// What the three products read, and how they multiply, is the business of Operands: FloatOperands,
// BfloatOperands or TileOperands.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/loss_operands.h"
#include "ops/pairwise_nll.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

template <typename In, typename Operands>
class FactoredLoss {
 public:
  using T = typename Operands::Value;

  FactoredLoss(const GraphView& graph, const FactoredPotential<In>& potential,
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
        tile_edges_(choose_tile_edges()),
        tile_(tile_edges_),
        operands_(LossShape{D_, ceil_div(D_, kMaskBits), pairs_, tile_edges_, with_gradient_,
                            num_threads}),
        energies_(tile_edges_, pairs_),
        bias_(energies_.columns()),
        hidden_gradient_(with_gradient_ ? tile_edges_ * D_ : 0),
        gradient_rows_(with_gradient_ ? round_up(D_, kMaskBits) : 0),
        weight_gradient_(gradient_rows_, pairs_),
        bias_gradient_(energies_.columns()) {
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
      [[maybe_unused]] const typename Operands::Scope scope;
      initialise();
      while (true) {
#pragma omp single
        tile_size = collect_tile(edge, node);
        if (tile_size == 0) break;
        if (ceil_div(tile_size, kBlockEdges) >= num_threads_) {
          take_blocks(tile_size);
        } else {
          share_blocks(tile_size);
        }
        if (with_gradient_) reduce_tile(tile_size);
      }
      if (with_gradient_) finish_weight();
    }
  }

 private:
  static constexpr int64_t V = kLanes<T>;
  static constexpr int64_t kBlockFeatures = 128;  // of one thread's turn, in sums over a tile

  struct TileEdge {
    int64_t edge;
    int64_t source;
    int64_t target;
  };

  // A tile is sized to stay in a last-level cache, with several blocks for every thread unless that
  // takes more than kMostBytes, which those of 64 threads with 150 labels do not.
  int64_t choose_tile_edges() const {
    constexpr int64_t kTileBytes = 16 << 20;
    constexpr int64_t kMostBytes = 1 << 30;
    constexpr int64_t kMostEdges = 24 * kBlockEdges;
    const int64_t edge_bytes = (pairs_ + 2 * D_) * static_cast<int64_t>(sizeof(T));
    const int64_t least = 2 * kBlockEdges * num_threads_;
    const int64_t wanted = std::clamp(kTileBytes / edge_bytes, least, std::max(kMostEdges, least));
    const int64_t blocks = std::min(wanted, kMostBytes / edge_bytes) / kBlockEdges;
    const int64_t edges = std::max<int64_t>(blocks, 1) * kBlockEdges;
    return round_up(std::clamp<int64_t>(graph_.num_edges, 1, edges), kBlockEdges);
  }

  void initialise() {
#pragma omp for schedule(static) nowait
    for (int64_t e = 0; e < graph_.num_edges; ++e) losses_[e] = 0;
#pragma omp for schedule(static) nowait
    for (int64_t group = 0; group < ceil_div(D_, kGroupFeatures); ++group) {
      operands_.pack_weight(potential_.weight, group);
    }
#pragma omp for schedule(static) nowait
    for (int64_t pair = 0; pair < energies_.columns(); ++pair) bias_.get()[pair] = bias_of(pair);
    if (with_gradient_) {
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < graph_.num_nodes * D_; ++i) grad_source_[i] = grad_target_[i] = 0;
#pragma omp for schedule(static) nowait
      for (int64_t panel = 0; panel < energies_.count(); ++panel) {
        std::fill_n(weight_gradient_.at(panel, 0), gradient_rows_ * energies_.width(panel), T(0));
        std::fill_n(bias_gradient_.get() + energies_.column(panel), energies_.width(panel), T(0));
      }
    }
#pragma omp barrier
  }

  // An infinite energy in the padding has no weight in the softmax. A weight that is not finite
  // makes NaN of all energies of its pair, also where it meets hidden elements of zero, which
  // products may leave out.
  T bias_of(int64_t pair) const {
    if (pair >= pairs_) return std::numeric_limits<T>::infinity();
    const In* weight = potential_.weight + pair * D_;
    Vec<T> zeros = {};
    for (int64_t d = 0; d < D_; d += V) zeros += T(0) * load_up_to(weight + d, D_ - d);
    return static_cast<T>(potential_.bias[pair]) + horizontal_sum<T>(zeros);
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

  // Every thread takes whole blocks, whose energies then stay in its caches.
  void take_blocks(int64_t tile_size) {
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < tile_size; first += kBlockEdges) {
      const int64_t count = std::min(kBlockEdges, tile_size - first);
      compute_hidden(first, count);
      for (int64_t panel = 0; panel < energies_.count(); ++panel) {
        compute_energies(first, count, panel);
      }
      for (int64_t i = first; i < first + count; ++i) compute_loss(i);
      if (!with_gradient_) continue;
      for (int64_t panel = 0; panel < energies_.count(); ++panel) {
        operands_.pack_gradient(first, count, panel, energies_);
      }
      for (int64_t word = 0; word * kMaskBits < D_; ++word) {
        differentiate_hidden(first, count, word);
      }
    }
  }

  // All threads work on every block, a step at a time.
  void share_blocks(int64_t tile_size) {
    share(tile_size, 1,
          [&](int64_t first, int64_t count, int64_t) { compute_hidden(first, count); });
    share(tile_size, energies_.count(), [&](int64_t first, int64_t count, int64_t panel) {
      compute_energies(first, count, panel);
    });
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tile_size; ++i) compute_loss(i);
    if (!with_gradient_) return;
    share(tile_size, energies_.count(), [&](int64_t first, int64_t count, int64_t panel) {
      operands_.pack_gradient(first, count, panel, energies_);
    });
    share(tile_size, ceil_div(D_, kMaskBits), [&](int64_t first, int64_t count, int64_t word) {
      differentiate_hidden(first, count, word);
    });
  }

  // Calls step(first, count, part) for the edges of every block and every part; the blocks of a
  // part one after another, as they read the same weight.
  template <typename Step>
  void share(int64_t tile_size, int64_t parts, Step&& step) {
    const int64_t blocks = ceil_div(tile_size, kBlockEdges);
#pragma omp for schedule(dynamic)
    for (int64_t turn = 0; turn < blocks * parts; ++turn) {
      const int64_t first = turn % blocks * kBlockEdges;
      step(first, std::min(kBlockEdges, tile_size - first), turn / blocks);
    }
  }

  void compute_hidden(int64_t first, int64_t count) {
    const int64_t row = operands_.hidden_row();
    for (int64_t i = 0; i < count; ++i) {
      const TileEdge& edge = tile_.get()[first + i];
      const In* source = potential_.source + edge.source * D_;
      const In* target = potential_.target + edge.target * D_;
      T* hidden = operands_.hidden(first) + i * row;
      int64_t d = 0;
      for (; d < D_; d += V) {
        const Vec<T> sum = load_up_to(source + d, D_ - d) + load_up_to(target + d, D_ - d);
        store(hidden + d, relu<T>(sum));
      }
      std::fill_n(hidden + d, row - d, T(0));
    }
    operands_.pack_hidden(first, count);
  }

  void compute_energies(int64_t first, int64_t count, int64_t panel) {
    const int64_t width = energies_.width(panel);
    T* energies = energies_.at(panel, first);
    const T* bias = bias_.get() + energies_.column(panel);
    for (int64_t i = 0; i < count; ++i) std::copy_n(bias, width, energies + i * width);
    operands_.add_energies(first, count, panel, energies_);
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

  // dL/d(source + target) of a block, one word of features: dL/denergies times W, where the sum is
  // positive.
  void differentiate_hidden(int64_t first, int64_t count, int64_t word) {
    const T* product = operands_.multiply_weight(first, count, word, energies_);
    for (int64_t i = 0; i < count; ++i) {
      const TileEdge& edge = tile_.get()[first + i];
      const In* source = potential_.source + edge.source * D_;
      const In* target = potential_.target + edge.target * D_;
      for (int64_t d = word * kMaskBits; d < std::min((word + 1) * kMaskBits, D_); d += V) {
        const Vec<T> sum = load_up_to(source + d, D_ - d) + load_up_to(target + d, D_ - d);
        store_up_to(hidden_gradient_.get() + (first + i) * D_ + d, D_ - d,
                    where_positive<T>(sum, Operands::hidden_gradient(product, i, d % kMaskBits)));
      }
    }
  }

  // Sums over the edges of a tile. Each turn of the loop owns what it writes.
  void reduce_tile(int64_t tile_size) {
    const int64_t blocks = ceil_div(D_, kBlockFeatures);
    const int64_t panels = energies_.count();
#pragma omp for schedule(dynamic)
    for (int64_t turn = 0; turn < blocks * (panels + 1); ++turn) {
      const int64_t panel = turn / blocks;
      const int64_t feature = turn % blocks * kBlockFeatures;
      const int64_t features = std::min(kBlockFeatures, D_ - feature);
      if (panel < panels) {
        operands_.add_weight_gradient(tile_size, feature, features, panel, energies_,
                                      weight_gradient_);
        if (feature == 0) reduce_bias(panel, tile_size);
      } else {
        reduce_nodes(feature, features, tile_size);
      }
    }
  }

  void reduce_bias(int64_t panel, int64_t tile_size) {
    T* sum = bias_gradient_.get() + energies_.column(panel);
    for (int64_t i = 0; i < tile_size; ++i) {
      const T* edge_gradient = energies_.at(panel, i);
      for (int64_t n = 0; n < energies_.width(panel); n += V) {
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
      for (int64_t panel = 0; panel < energies_.count(); ++panel) {
        const int64_t column = energies_.column(panel);
        for (int64_t i = 0; i < std::min(energies_.width(panel), pairs_ - column); ++i) {
          T* to = grad_weight_ + (column + i) * D_;
          for (int64_t f = d; f < std::min(d + V, D_); ++f) {
            to[f] = weight_gradient_.at(panel, f)[i];
          }
        }
      }
    }
  }

  GraphView graph_;
  FactoredPotential<In> potential_;
  EdgeLabels labels_;
  const T* edge_weight_;  // [E] or null
  T* losses_;             // [E]
  bool with_gradient_;
  int num_threads_;
  int64_t K_, D_, pairs_, tile_edges_;
  Buffer<TileEdge> tile_;  // [tile]
  Operands operands_;
  Panels<T> energies_;         // [tile, K * K], later dL/denergies
  Buffer<T> bias_;             // [K * K, padded]
  Buffer<T> hidden_gradient_;  // [tile, D]
  int64_t gradient_rows_;      // D, padded
  Panels<T> weight_gradient_;  // [gradient_rows, K * K]
  Buffer<T> bias_gradient_;    // [K * K, padded]
  T* grad_source_ = nullptr;   // [N, D]
  T* grad_target_ = nullptr;   // [N, D]
  T* grad_weight_ = nullptr;   // [K, K, D]
  T* grad_bias_ = nullptr;     // [K, K]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
