#include "ops/dense_crf.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "cpu/dispatch.h"
#include "cpu/lattice_filter.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

// exp(x) of a vector of any number of lanes, x <= 0.
template <typename Row>
typename Row::Vector exponential(typename Row::Vector x) {
  if constexpr (sizeof(typename Row::T) == 4) {
    using Int = typename RowVector<int32_t, Row::V>::type;
    return exp_nonpositive_lanes<typename Row::Vector, Int>(x);
  } else {
    return exp_nonpositive(x);
  }
}

// The sum, or with Max the largest, of the lanes.
template <bool Max, int V, typename Vector>
auto reduce(Vector v) {
  using T = std::remove_reference_t<decltype(v[0])>;
  if constexpr (V == 1) {
    return static_cast<T>(v[0]);
  } else {
    using Half = typename RowVector<T, V / 2>::type;
    Half halves[2];
    std::memcpy(halves, &v, sizeof(v));
    if constexpr (Max) {
      return reduce<Max, V / 2>(halves[0] > halves[1] ? halves[0] : halves[1]);
    } else {
      return reduce<Max, V / 2>(halves[0] + halves[1]);
    }
  }
}

// The softmax of a row, or its logarithm, in place. Padded channels hold -inf.
template <typename Row>
void softmax(const Row& row, bool log, typename Row::T* values) {
  using Vector = typename Row::Vector;
  Vector high = Row::load(values);
  for (int64_t r = 1; r < row.vectors(); ++r) {
    const Vector v = Row::load(values + r * Row::V);
    high = v > high ? v : high;
  }
  const auto highest = reduce<true, Row::V>(high);
  Vector total = {};
  for (int64_t r = 0; r < row.vectors(); ++r) {
    const Vector logit = Row::load(values + r * Row::V) - highest;
    const Vector v = exponential<Row>(logit);
    Row::store(values + r * Row::V, log ? logit : v);
    total += v;
  }
  const typename Row::T sum = reduce<false, Row::V>(total);
  const typename Row::T factor = log ? 1 : 1 / sum, shift = log ? std::log(sum) : 0;
  for (int64_t r = 0; r < row.vectors(); ++r) {
    Row::store(values + r * Row::V, Row::load(values + r * Row::V) * factor - shift);
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
  void slice(const T* source, int64_t n, int64_t count, const T* base, T* logits) const {
    values_.slice_tile(source, n, count, slice_scale_, base, logits);
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
      : row_(row),
        arguments_(arguments),
        logits_(arguments.num_values * row.width()),
        block_size_(lattice_block_size(1)) {
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
    PerThread<Buffer<T>> tiles(num_threads_, kTile * row_.width());
    PerThread<Buffer<T>> scratch(num_threads_, row_.width());
    const int64_t N = arguments_.num_values;
    std::atomic<int64_t> bad{-1};

#pragma omp parallel num_threads(num_threads_)
    {
      T* tile = tiles.mine().get();
      std::vector<T*> source;
      for (int64_t offset : source_offsets) source.push_back(sources.mine().get() + offset);
      for (int64_t done = 0; done <= arguments_.iterations; ++done) {
        if (done > 0) {
          for (Kernel<Row>& kernel : kernels_) kernel.blur(scratch.mine());
        }
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < N; block += block_size_) {
          const int64_t end = std::min(N, block + block_size_);
          for (int64_t n = block; n < end; n += kTile) {
            const int64_t count = std::min(kTile, end - n);
            T* logits = logits_.get() + n * row_.width();
            if (done == 0 && !read_logits(n, count, logits)) bad = n;
            if (done == 0 || kernels_.empty()) std::copy_n(logits, count * row_.width(), tile);
            for (size_t k = 0; k < kernels_.size(); ++k) {
              const bool at_block = n % kernels_[k].block_size() == 0;
              if (done > 0) {
                if (at_block) kernels_[k].copy_block(n, source[k]);
                kernels_[k].slice(source[k], n, count, k == 0 ? logits : tile, tile);
              }
              if (at_block && done < arguments_.iterations) kernels_[k].clear_block(n);
            }
            const bool log = arguments_.log && done == arguments_.iterations;
            for (int64_t i = 0; i < count; ++i) softmax(row_, log, tile + i * row_.width());
            if (done == arguments_.iterations) {
              write_marginals(n, count, tile);
            } else {
              for (Kernel<Row>& kernel : kernels_) kernel.splat(n, count, tile);
            }
          }
        }
      }
    }
    DEEPCRF_CHECK(bad < 0, "unary: got NaN, -inf, or no finite energy at a position near ",
                  bad.load(), ", must hold energies with at least one finite a position");
  }

 private:
  // Rows of negative energies; false where their softmax is undefined.
  bool read_logits(int64_t first, int64_t count, T* logits) const {
    const int64_t K = arguments_.num_labels, W = row_.width();
    const T* unary = static_cast<const T*>(arguments_.unary);
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    T highest[kTile];
    std::fill_n(highest, kTile, -kInfinity);
    bool good = true;
    std::fill_n(logits, count * W, -kInfinity);
    for (int64_t k = 0; k < K; ++k) {
      const T* from = unary + k * arguments_.num_values + first;
      for (int64_t i = 0; i < count; ++i) {
        const T logit = -from[i];
        good = good && logit < kInfinity;
        highest[i] = logit > highest[i] ? logit : highest[i];
        logits[i * W + k] = logit;
      }
    }
    for (int64_t i = 0; i < count; ++i) good = good && highest[i] > -kInfinity;
    return good;
  }

  void write_marginals(int64_t first, int64_t count, const T* rows) const {
    T* marginals = static_cast<T*>(arguments_.marginals);
    for (int64_t k = 0; k < arguments_.num_labels; ++k) {
      T* to = marginals + k * arguments_.num_values + first;
      for (int64_t i = 0; i < count; ++i) to[i] = rows[i * row_.width() + k];
    }
  }

  Row row_;
  DenseCRFArguments arguments_;
  int num_threads_;
  Buffer<T> logits_;    // [N, width]
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
