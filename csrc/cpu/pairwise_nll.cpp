// The factored loss works on tiles of edges. Within a tile every thread takes blocks of edges
// through
//   hidden = relu(source + target),  energies = hidden W' + b,  softmax,  hidden gradient = G W,
// then all threads share out the sums over the tile's edges by the rows and columns they own, so
// the result does not depend on the number of threads. Only a tile of energies is ever alive.
#include "ops/pairwise_nll.h"

#include <cmath>
#include <limits>

#include "cpu/dispatch.h"
#include "cpu/gemm.h"
#include "cpu/planes.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

// Matrices are stored as panels: columns in groups of a register block's width, [panels, rows, P].
template <typename T>
constexpr int64_t kPanel = kGemmVectors * kLanes<T>;
constexpr int64_t kBlockEdges = 16 * kGemmRows;  // edges of one thread's turn
constexpr int64_t kBlockRows = 16 * kGemmRows;   // weight rows of one thread's turn
constexpr int64_t kDepth = 64;                   // of one product: a panel's slice stays in L1

// A row-major matrix [rows, columns] as panels, zero in the padding.
template <typename T>
class Panels {
 public:
  Panels(int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), data_(count() * rows * kPanel<T>) {}

  int64_t count() const { return ceil_div(columns_, kPanel<T>); }
  int64_t width(int64_t panel) const { return std::min(kPanel<T>, columns_ - panel * kPanel<T>); }
  int64_t vectors(int64_t panel) const { return ceil_div(width(panel), kLanes<T>); }
  T* at(int64_t panel, int64_t row) const {
    return data_.get() + (panel * rows_ + row) * kPanel<T>;
  }
  int64_t rows() const { return rows_; }

 private:
  int64_t rows_, columns_;
  Buffer<T> data_;
};

struct TileEdge {
  int64_t edge;
  int64_t source;
  int64_t target;
};

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
        pairs_row_(round_up(pairs_, kLanes<T>)),
        tile_edges_(choose_tile_edges()),
        tile_(tile_edges_),
        weight_by_feature_(D_, pairs_),
        weight_by_pair_(with_gradient_ ? pairs_ : 0, D_),
        bias_(pairs_row_),
        hidden_(tile_edges_, D_),
        energies_(tile_edges_ * pairs_row_),
        hidden_gradient_(with_gradient_ ? tile_edges_ : 0, D_),
        weight_gradient_(with_gradient_ ? pairs_ : 0, D_) {
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
          compute_energies(first, count);
          compute_losses(first, count);
          if (with_gradient_) differentiate_hidden(first, count);
        }
        if (with_gradient_) reduce_tile(tile_size);
      }
      if (with_gradient_) finish_weight();
    }
  }

 private:
  // A tile is sized to stay in a last-level cache, with several blocks for every thread.
  int64_t choose_tile_edges() const {
    constexpr int64_t kTileBytes = 16 << 20;
    constexpr int64_t kMostEdges = 16 * kBlockEdges;
    const int64_t edge_bytes = (pairs_row_ + 2 * D_) * static_cast<int64_t>(sizeof(T));
    const int64_t edges = std::clamp(kTileBytes / edge_bytes / kBlockEdges * kBlockEdges,
                                     2 * kBlockEdges * num_threads_,
                                     std::max(kMostEdges, 2 * kBlockEdges * num_threads_));
    return std::min(edges, std::max<int64_t>(graph_.num_edges, 1));
  }

  void initialise() {
#pragma omp for schedule(static) nowait
    for (int64_t e = 0; e < graph_.num_edges; ++e) losses_[e] = 0;
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < weight_by_feature_.count(); ++panel) {
      for (int64_t d = 0; d < D_; ++d) {
        T* row = weight_by_feature_.at(panel, d);
        for (int64_t i = 0; i < kPanel<T>; ++i) {
          const int64_t pair = panel * kPanel<T> + i;
          row[i] = pair < pairs_ ? potential_.weight[pair * D_ + d] : T(0);
        }
      }
    }
    // An infinite energy in the padding has no weight in the softmax.
#pragma omp for schedule(static) nowait
    for (int64_t pair = 0; pair < pairs_row_; ++pair) {
      bias_.get()[pair] =
          pair < pairs_ ? potential_.bias[pair] : std::numeric_limits<T>::infinity();
    }
    if (with_gradient_) {
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < graph_.num_nodes * D_; ++i) grad_source_[i] = grad_target_[i] = 0;
#pragma omp for schedule(static) nowait
      for (int64_t pair = 0; pair < pairs_; ++pair) {
        grad_bias_[pair] = 0;
        for (int64_t panel = 0; panel < weight_by_pair_.count(); ++panel) {
          pack_row(potential_.weight + pair * D_, panel, weight_by_pair_.at(panel, pair));
          std::fill_n(weight_gradient_.at(panel, pair), kPanel<T>, T(0));
        }
      }
    }
#pragma omp barrier
  }

  void pack_row(const T* features, int64_t panel, T* row) const {
    const int64_t width = hidden_.width(panel);
    std::copy_n(features + panel * kPanel<T>, width, row);
    std::fill_n(row + width, kPanel<T> - width, T(0));
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

  void compute_energies(int64_t first, int64_t count) {
    for (int64_t panel = 0; panel < hidden_.count(); ++panel) {
      const int64_t column = panel * kPanel<T>;
      const int64_t width = hidden_.width(panel);
      for (int64_t i = first; i < first + count; ++i) {
        const TileEdge& edge = tile_.get()[i];
        const T* source = potential_.source + edge.source * D_ + column;
        const T* target = potential_.target + edge.target * D_ + column;
        T* out = hidden_.at(panel, i);
        int64_t d = 0;
        for (; d + kLanes<T> <= width; d += kLanes<T>) {
          store(out + d, relu<T>(load(source + d) + load(target + d)));
        }
        for (; d < width; ++d) out[d] = source[d] + target[d] < 0 ? T(0) : source[d] + target[d];
        std::fill_n(out + width, kPanel<T> - width, T(0));
      }
    }
    for (int64_t i = first; i < first + count; ++i) {
      std::copy_n(bias_.get(), pairs_row_, energies_.get() + i * pairs_row_);
    }
    for (int64_t panel = 0; panel < weight_by_feature_.count(); ++panel) {
      for (int64_t part = 0; part < hidden_.count(); ++part) {
        gemm(count, weight_by_feature_.vectors(panel), hidden_.width(part), hidden_.at(part, first),
             kPanel<T>, int64_t(1), weight_by_feature_.at(panel, part * kPanel<T>), kPanel<T>,
             energies_.get() + first * pairs_row_ + panel * kPanel<T>, pairs_row_);
      }
    }
  }

  // Turns the energies of a block into losses and, for gradients, into dL/denergies in place.
  void compute_losses(int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      const TileEdge& edge = tile_.get()[i];
      T* row = energies_.get() + i * pairs_row_;
      const int64_t truth = labels_.labels[edge.source] * K_ + labels_.labels[edge.target];
      const T truth_energy = row[truth];
      Vec<T> lowest_lanes = load(row);
      for (int64_t n = kLanes<T>; n < pairs_row_; n += kLanes<T>) {
        const Vec<T> v = load(row + n);
        lowest_lanes = v < lowest_lanes ? v : lowest_lanes;
      }
      const T lowest = -horizontal_max<T>(-lowest_lanes);
      Vec<T> sum_lanes = {};
      for (int64_t n = 0; n < pairs_row_; n += kLanes<T>) {
        const Vec<T> v = exp_nonpositive(lowest - load(row + n));
        store(row + n, v);
        sum_lanes += v;
      }
      const T sum = horizontal_sum<T>(sum_lanes);
      losses_[edge.edge] = truth_energy - lowest + std::log(sum);
      if (with_gradient_) {
        const T weight = edge_weight_ == nullptr ? T(1) : edge_weight_[edge.edge];
        const T scale = -weight / sum;
        for (int64_t n = 0; n < pairs_row_; n += kLanes<T>) store(row + n, scale * load(row + n));
        row[truth] += weight;
      }
    }
  }

  // dL/d(source + target) of a block: dL/denergies times W, where hidden > 0.
  void differentiate_hidden(int64_t first, int64_t count) {
    for (int64_t panel = 0; panel < hidden_.count(); ++panel) {
      T* out = hidden_gradient_.at(panel, first);
      std::fill_n(out, count * kPanel<T>, T(0));
      for (int64_t pair = 0; pair < pairs_; pair += kDepth) {
        gemm(count, hidden_.vectors(panel), std::min(kDepth, pairs_ - pair),
             energies_.get() + first * pairs_row_ + pair, pairs_row_, int64_t(1),
             weight_by_pair_.at(panel, pair), kPanel<T>, out, kPanel<T>);
      }
      const T* hidden = hidden_.at(panel, first);
      for (int64_t i = 0; i < count * kPanel<T>; i += kLanes<T>) {
        store(out + i, where_positive<T>(load(hidden + i), load(out + i)));
      }
    }
  }

  // Sums over the edges of a tile. Each turn of the loop owns what it writes.
  void reduce_tile(int64_t tile_size) {
    const int64_t panels = hidden_.count();
    const int64_t row_blocks = ceil_div(pairs_, kBlockRows);
#pragma omp for schedule(dynamic)
    for (int64_t turn = 0; turn < panels * (row_blocks + 1); ++turn) {
      const int64_t panel = turn % panels;
      if (turn < panels * row_blocks) {
        const int64_t row = turn / panels * kBlockRows;
        reduce_weight(panel, row, std::min(kBlockRows, pairs_ - row), tile_size);
        if (panel == 0) reduce_bias(row, std::min(kBlockRows, pairs_ - row), tile_size);
      } else {
        reduce_nodes(panel, tile_size);
      }
    }
  }

  void reduce_weight(int64_t panel, int64_t row, int64_t rows, int64_t tile_size) {
    for (int64_t i = 0; i < tile_size; i += kDepth) {
      gemm(rows, hidden_.vectors(panel), std::min(kDepth, tile_size - i),
           energies_.get() + i * pairs_row_ + row, int64_t(1), pairs_row_, hidden_.at(panel, i),
           kPanel<T>, weight_gradient_.at(panel, row), kPanel<T>);
    }
  }

  void reduce_bias(int64_t row, int64_t rows, int64_t tile_size) {
    T sum[kBlockRows] = {};
    for (int64_t i = 0; i < tile_size; ++i) {
      const T* edge_gradient = energies_.get() + i * pairs_row_ + row;
      for (int64_t r = 0; r < rows; ++r) sum[r] += edge_gradient[r];
    }
    for (int64_t r = 0; r < rows; ++r) grad_bias_[row + r] += sum[r];
  }

  void reduce_nodes(int64_t panel, int64_t tile_size) {
    const int64_t column = panel * kPanel<T>;
    const int64_t width = hidden_.width(panel);
    for (int64_t i = 0; i < tile_size; ++i) {
      const TileEdge& edge = tile_.get()[i];
      const T* edge_gradient = hidden_gradient_.at(panel, i);
      T* source = grad_source_ + edge.source * D_ + column;
      T* target = grad_target_ + edge.target * D_ + column;
      for (int64_t d = 0; d < width; ++d) source[d] += edge_gradient[d];
      for (int64_t d = 0; d < width; ++d) target[d] += edge_gradient[d];
    }
  }

  void finish_weight() {
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < pairs_; ++pair) {
      for (int64_t panel = 0; panel < hidden_.count(); ++panel) {
        std::copy_n(weight_gradient_.at(panel, pair), hidden_.width(panel),
                    grad_weight_ + pair * D_ + panel * kPanel<T>);
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
  int64_t K_, D_, pairs_, pairs_row_, tile_edges_;
  Buffer<TileEdge> tile_;        // [tile]
  Panels<T> weight_by_feature_;  // [D, K * K]
  Panels<T> weight_by_pair_;     // [K * K, D]
  Buffer<T> bias_;               // [pairs_row]
  Panels<T> hidden_;             // [tile, D]
  Buffer<T> energies_;           // [tile, pairs_row], later dL/denergies
  Panels<T> hidden_gradient_;    // [tile, D]
  Panels<T> weight_gradient_;    // [K * K, D]
  T* grad_source_ = nullptr;     // [N, D]
  T* grad_target_ = nullptr;     // [N, D]
  T* grad_weight_ = nullptr;     // [K, K, D]
  T* grad_bias_ = nullptr;       // [K, K]
};

// Loss of one edge from its K * K energies; with grad_energies, its gradient times weight.
template <typename T>
T table_loss(const T* energies, int64_t pairs, int64_t truth, T weight, T* grad_energies) {
  T lowest = energies[0];
  for (int64_t n = 1; n < pairs; ++n) lowest = energies[n] < lowest ? energies[n] : lowest;
  T sum = 0;
  for (int64_t n = 0; n < pairs; ++n) sum += std::exp(lowest - energies[n]);
  if (grad_energies != nullptr) {
    for (int64_t n = 0; n < pairs; ++n) {
      grad_energies[n] = -weight * std::exp(lowest - energies[n]) / sum;
    }
    grad_energies[truth] += weight;
  }
  return energies[truth] - lowest + std::log(sum);
}

template <typename T>
void table_losses(const GraphView& graph, int64_t num_labels,
                  const T* energies,  // [E, K, K]
                  const EdgeLabels& labels,
                  const T* edge_weight,  // [E] or null
                  T* losses,             // [E]
                  T* grad_energies,      // [E, K, K] or null
                  int num_threads) {
  const int64_t pairs = num_labels * num_labels;
#pragma omp parallel for schedule(dynamic, 64) num_threads(num_threads)
  for (int64_t p = 0; p < graph.num_nodes; ++p) {
    for (int64_t e = graph.row_offsets[p]; e < graph.row_offsets[p + 1]; ++e) {
      T* gradient = grad_energies == nullptr ? nullptr : grad_energies + e * pairs;
      const int64_t first = labels.labels[p];
      const int64_t second = labels.labels[graph.targets[e]];
      if (first == labels.ignore_index || second == labels.ignore_index) {
        losses[e] = 0;
        if (gradient != nullptr) std::fill_n(gradient, pairs, T(0));
      } else {
        losses[e] = table_loss(energies + e * pairs, pairs, first * num_labels + second,
                               edge_weight == nullptr ? T(1) : edge_weight[e], gradient);
      }
    }
  }
}

}  // namespace

void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    FactoredLoss<T>(graph, potential.as<T>(), labels, nullptr, static_cast<T*>(losses), nullptr,
                    ctx.num_threads)
        .run();
  });
}

void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    const EdgeLabels& labels, const void* edge_weight, void* losses,
                                    const AnyFactoredGradient& gradient,
                                    const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    FactoredLoss<T>(graph, potential.as<T>(), labels, static_cast<const T*>(edge_weight),
                    static_cast<T*>(losses), &gradient, ctx.num_threads)
        .run();
  });
}

void pairwise_nll_table(const GraphView& graph, const AnyTablePotential& potential,
                        const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    table_losses<T>(graph, potential.num_labels, static_cast<const T*>(potential.energies), labels,
                    nullptr, static_cast<T*>(losses), nullptr, ctx.num_threads);
  });
}

void pairwise_nll_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                 const EdgeLabels& labels, const void* edge_weight, void* losses,
                                 void* grad_energies, const ExecutionContext& ctx) {
  dispatch_native_floating(potential.dtype, "potential", [&](auto tag) {
    using T = decltype(tag);
    table_losses(graph, potential.num_labels, static_cast<const T*>(potential.energies), labels,
                 static_cast<const T*>(edge_weight), static_cast<T*>(losses),
                 static_cast<T*>(grad_energies), ctx.num_threads);
  });
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(pairwise_nll_factored)
DEEPCRF_DECLARE_ISAS(pairwise_nll_factored_backward)
DEEPCRF_DECLARE_ISAS(pairwise_nll_table)
DEEPCRF_DECLARE_ISAS(pairwise_nll_table_backward)

void pairwise_nll_factored(const GraphView& graph, const AnyFactoredPotential& potential,
                           const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_nll_factored)(graph, potential, labels, losses, ctx);
}

void pairwise_nll_factored_backward(const GraphView& graph, const AnyFactoredPotential& potential,
                                    const EdgeLabels& labels, const void* edge_weight, void* losses,
                                    const AnyFactoredGradient& gradient,
                                    const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_nll_factored_backward)
  (graph, potential, labels, edge_weight, losses, gradient, ctx);
}

void pairwise_nll_table(const GraphView& graph, const AnyTablePotential& potential,
                        const EdgeLabels& labels, void* losses, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_nll_table)(graph, potential, labels, losses, ctx);
}

void pairwise_nll_table_backward(const GraphView& graph, const AnyTablePotential& potential,
                                 const EdgeLabels& labels, const void* edge_weight, void* losses,
                                 void* grad_energies, const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(pairwise_nll_table_backward)
  (graph, potential, labels, edge_weight, losses, grad_energies, ctx);
}

}  // namespace deepcrf::cpu
#endif
