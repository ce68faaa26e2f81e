#include "ops/dense_crf.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "cpu/dispatch.h"
#include "cpu/lattice_filter.h"
#include "cpu/transpose.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

// The softmax of every position up to its factor: exponentials in place of the logits, one over
// their sums in factors. With log the logarithm: logits become logarithms, factors stay 1.
template <typename T>
void softmax(int64_t num_labels, int64_t tile, bool log,
             T* values,     // [K, tile]
             T* factors) {  // [tile]
  constexpr int V = kLanes<T>;
  for (int64_t i = 0; i < tile; i += V) {
    Vec<T> high = load(values + i);
    for (int64_t k = 1; k < num_labels; ++k) {
      const Vec<T> v = load(values + k * tile + i);
      high = v > high ? v : high;
    }
    Vec<T> sum = {};
    for (int64_t k = 0; k < num_labels; ++k) {
      const Vec<T> v = exp_nonpositive(load(values + k * tile + i) - high);
      if (!log) store(values + k * tile + i, v);
      sum += v;
    }
    store(factors + i, log ? broadcast(T{1}) : 1 / sum);
    if (!log) continue;
    T shift[V];
    store(shift, sum);
    for (T& lane : shift) lane = std::log(lane);
    high += load(shift);
    for (int64_t k = 0; k < num_labels; ++k) {
      store(values + k * tile + i, load(values + k * tile + i) - high);
    }
  }
}

// One kernel of the CRF with the values on its lattice.
template <typename Row>
class Kernel {
 public:
  using T = typename Row::T;

  Kernel(const Row& row, const DenseKernel<PermutohedralLattice>& kernel, int64_t num_labels)
      : row_(row),
        values_(row, kernel.lattice),
        num_points_(kernel.lattice.num_points),
        splat_scale_(static_cast<const T*>(kernel.splat_scale)),
        slice_scale_(static_cast<const T*>(kernel.slice_scale)),
        factor_(row.width()),
        matrix_(kernel.compatibility_dim == 2 ? num_labels * row.width() : 0),
        num_labels_(kernel.compatibility_dim == 2 ? num_labels : 0) {
    // Messages are energies: what is sliced is added to the negative energies.
    const T scale = static_cast<T>(lattice_scale(kernel.lattice.num_dims));
    const T* compatibility = static_cast<const T*>(kernel.compatibility);
    std::fill_n(factor_.get(), row.width(), scale);
    if (kernel.compatibility_dim == 0) {
      std::fill_n(factor_.get(), row.width(), scale * compatibility[0]);
    } else if (kernel.compatibility_dim == 1) {
      for (int64_t k = 0; k < num_labels; ++k) factor_.get()[k] = -scale * compatibility[k];
    } else {
      std::fill_n(matrix_.get(), num_labels * row.width(), T{0});
      for (int64_t k = 0; k < num_labels; ++k) {
        for (int64_t j = 0; j < num_labels; ++j) {
          matrix_.get()[j * row.width() + k] = -compatibility[k * num_labels + j];
        }
      }
    }
  }

  int64_t block_size() const { return values_.block_size(); }
  int64_t largest_block() const { return values_.largest_block(); }

  // By all threads.
  void blur(Buffer<T>& scratch) {
    values_.blur(false);
    if (num_labels_ == 0) return;
#pragma omp for schedule(static)
    for (int64_t m = 0; m < num_points_; ++m) {
      T* point = values_.result() + m * row_.width();
      std::copy_n(point, num_labels_, scratch.get());
      for (int64_t r = 0; r < row_.vectors(); ++r) {
        typename Row::Vector sum = {};
        for (int64_t j = 0; j < num_labels_; ++j) {
          sum += scratch.get()[j] * Row::load(matrix_.get() + j * row_.width() + r * Row::V);
        }
        Row::store(point + r * Row::V, sum);
      }
    }
  }

  // Sends the blurred points of a block to the logits of its positions.
  void copy_block(int64_t n, T* source) {
    values_.copy_block(n / block_size(), factor_.get(), source);
  }
  void slice(const T* source, int64_t n, int64_t count, const T* base, T* rows) const {
    values_.slice_tile(source, n, count, slice_scale_, base, rows);
  }

  void clear_block(int64_t n) { values_.clear_block(n / block_size()); }
  void splat(int64_t n, int64_t count, const T* marginals) {
    values_.splat_tile(n / block_size(), n, count, splat_scale_, marginals);
  }

 private:
  Row row_;
  LatticeValues<Row> values_;
  int64_t num_points_;
  const T* splat_scale_;
  const T* slice_scale_;
  Buffer<T> factor_;  // [width]
  Buffer<T> matrix_;  // [K, width], transposed; empty unless the compatibility is a matrix
  int64_t num_labels_;
};

template <typename Row>
class DenseMeanField {
 public:
  using T = typename Row::T;

  DenseMeanField(const Row& row, const DenseKernels& kernels, const DenseCRFArguments& arguments,
                 int num_threads)
      : row_(row), arguments_(arguments), block_size_(lattice_block_size(1)) {
    const int64_t blocks = ceil_div(arguments.num_values, block_size_);
    num_threads_ = static_cast<int>(std::min<int64_t>(num_threads, blocks));
    kernels_.reserve(kernels.size());
    for (const DenseKernel<PermutohedralLattice>& kernel : kernels) {
      kernels_.emplace_back(row, kernel, arguments.num_labels);
    }
  }

  void run() {
    std::vector<int64_t> source_offsets = {0};
    for (const Kernel<Row>& kernel : kernels_) {
      source_offsets.push_back(source_offsets.back() + kernel.largest_block() * row_.width());
    }
    PerThread<Buffer<T>> sources(num_threads_, source_offsets.back());
    PerThread<Tile> tiles(num_threads_, row_);
    PerThread<Buffer<T>> scratch(num_threads_, row_.width());
    const int64_t N = arguments_.num_values;
    std::atomic<int64_t> bad{-1};

#pragma omp parallel num_threads(num_threads_)
    {
      Tile& tile = tiles.mine();
      T* own_sources = sources.mine().get();
      for (int64_t done = 0; done <= arguments_.iterations; ++done) {
        if (done > 0) {
          for (Kernel<Row>& kernel : kernels_) kernel.blur(scratch.mine());
        }
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < N; block += block_size_) {
          const int64_t end = std::min(N, block + block_size_);
          for (int64_t n = block; n < end; n += kTile) {
            const int64_t count = std::min(kTile, end - n);
            for (size_t k = 0; k < kernels_.size(); ++k) {
              const bool at_block = n % kernels_[k].block_size() == 0;
              T* source = own_sources + source_offsets[k];
              if (done > 0) {
                if (at_block) kernels_[k].copy_block(n, source);
                T* rows = tile.rows.get();
                kernels_[k].slice(source, n, count, k == 0 ? nullptr : rows, rows);
              }
              if (at_block && done < arguments_.iterations) kernels_[k].clear_block(n);
            }
            read_logits(n, count, done > 0 && !kernels_.empty(), tile);
            if (done == 0 && !has_softmax(count, tile)) bad = n;
            if (done < arguments_.iterations) {
              softmax(arguments_.num_labels, kTile, false, tile.labels.get(), tile.factors.get());
              write_rows(tile);
              for (Kernel<Row>& kernel : kernels_) kernel.splat(n, count, tile.rows.get());
            } else {
              softmax(arguments_.num_labels, kTile, arguments_.log, tile.labels.get(),
                      tile.factors.get());
              write_marginals(n, count, tile);
            }
          }
        }
      }
    }
    DEEPCRF_CHECK(bad < 0, "unary: got NaN, -inf, or no finite energy at a position near ",
                  bad.load(), ", must hold energies with at least one finite a position");
  }

 private:
  // Positions that are worked on at a time: by rows for the lattices, by labels for the softmax.
  struct Tile {
    explicit Tile(const Row& row)
        : rows(kTile * row.width()), labels(kTile * row.width()), factors(kTile) {
      std::fill_n(rows.get(), kTile * row.width(), T{0});
      std::fill_n(labels.get(), kTile * row.width(), T{0});
    }
    Buffer<T> rows;     // [tile, width]
    Buffer<T> labels;   // [width, tile]; zeros beyond K
    Buffer<T> factors;  // [tile]
  };

  // labels = -unary, plus the rows where there are messages.
  void read_logits(int64_t first, int64_t count, bool messages, Tile& tile) const {
    const int64_t K = arguments_.num_labels, N = arguments_.num_values;
    const T* unary = static_cast<const T*>(arguments_.unary) + first;
    using Vector = typename Row::Vector;
    for (int64_t i = 0; i < count; i += Row::V) {
      for (int64_t k = 0; k < K; k += Row::V) {
        Vector logits[Row::V];
        if (messages) {
          for (int j = 0; j < Row::V; ++j) {
            logits[j] = Row::load(tile.rows.get() + (i + j) * row_.width() + k);
          }
          transpose<Row::V>(logits);
        } else {
          std::fill_n(logits, Row::V, Vector{});
        }
        const int64_t labels = std::min<int64_t>(Row::V, K - k);
        for (int j = 0; j < labels; ++j) {
          const T* energy = unary + (k + j) * N + i;
          __builtin_prefetch(energy + kTile);
          Row::store(tile.labels.get() + (k + j) * kTile + i,
                     logits[j] - load_row(energy, count - i));
        }
      }
    }
  }

  // Up to V values; zeros beyond.
  static typename Row::Vector load_row(const T* from, int64_t count) {
    if (count >= Row::V) return Row::load(from);
    T lanes[Row::V] = {};
    std::copy_n(from, count, lanes);
    return Row::load(lanes);
  }

  // Whether the softmax of the labels is defined.
  bool has_softmax(int64_t count, const Tile& tile) const {
    using Vector = typename Row::Vector;
    const Vector infinity = std::numeric_limits<T>::infinity() - Vector{};
    auto good = infinity == infinity;
    for (int64_t i = 0; i < count; i += Row::V) {  // zeros beyond count
      Vector highest = -infinity;
      for (int64_t k = 0; k < arguments_.num_labels; ++k) {
        const Vector logits = Row::load(tile.labels.get() + k * kTile + i);
        good &= logits < infinity;
        highest = logits > highest ? logits : highest;
      }
      good &= highest > -infinity;
    }
    int bad_lanes = 0;
    for (int lane = 0; lane < Row::V; ++lane) bad_lanes += good[lane] == 0;
    return bad_lanes == 0;
  }

  // rows = factors * labels
  void write_rows(Tile& tile) const {
    using Vector = typename Row::Vector;
    for (int64_t i = 0; i < kTile; i += Row::V) {
      const Vector factor = Row::load(tile.factors.get() + i);
      for (int64_t k = 0; k < row_.width(); k += Row::V) {
        Vector values[Row::V];
        for (int j = 0; j < Row::V; ++j) {
          values[j] = factor * Row::load(tile.labels.get() + (k + j) * kTile + i);
        }
        transpose<Row::V>(values);
        for (int j = 0; j < Row::V; ++j) {
          Row::store(tile.rows.get() + (i + j) * row_.width() + k, values[j]);
        }
      }
    }
  }

  void write_marginals(int64_t first, int64_t count, const Tile& tile) const {
    T* marginals = static_cast<T*>(arguments_.marginals) + first;
    const T* factors = tile.factors.get();
    for (int64_t k = 0; k < arguments_.num_labels; ++k) {
      const T* values = tile.labels.get() + k * kTile;
      T* to = marginals + k * arguments_.num_values;
      for (int64_t i = 0; i < count; ++i) to[i] = factors[i] * values[i];
    }
  }

  Row row_;
  DenseCRFArguments arguments_;
  int num_threads_;
  int64_t block_size_;  // a multiple of that of every kernel
  std::vector<Kernel<Row>> kernels_;
};

}  // namespace

void dense_crf(const DenseKernels& kernels, const DenseCRFArguments& arguments,
               const ExecutionContext& ctx) {
  dispatch_native_floating(arguments.dtype, "unary", [&](auto tag) {
    with_row<decltype(tag)>(arguments.num_labels, [&](auto row) {
      DenseMeanField<decltype(row)>(row, kernels, arguments, ctx.num_threads).run();
    });
  });
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(dense_crf)

void dense_crf(const DenseKernels& kernels, const DenseCRFArguments& arguments,
               const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(dense_crf)(kernels, arguments, ctx);
}

}  // namespace deepcrf::cpu
#endif
