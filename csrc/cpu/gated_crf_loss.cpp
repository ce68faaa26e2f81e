#include "ops/gated_crf_loss.h"

#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/planes.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

// Labels whose sums are held in registers at once: enough independent multiply-adds to hide their
// latency.
constexpr int kMostLabels = 8;

// One image of the batch, its rows interleaved: [Z * Y, C + 1 + K, pitch], the planes of a row
// being its colours, its mask and its probabilities. Zeros before and behind the X pixels of each
// make the window of every pixel a run within its planes.
template <typename T>
class PaddedRows {
 public:
  static constexpr int V = kLanes<T>;

  explicit PaddedRows(const GatedCRFLoss& loss)
      : loss_(loss),
        num_rows_(loss.depth * loss.height),
        margin_(std::min(loss.radius, loss.width - 1)),
        // An odd number of vectors: the planes of a row then start in different sets of a cache.
        pitch_((ceil_div(round_up(loss.width, V) + 2 * margin_, V) | 1) * V),
        values_(num_rows_ * num_planes() * pitch_),
        inside_(pitch_) {
    std::fill_n(inside_.get(), pitch_, T{0});
    std::fill_n(inside_.get() + margin_, loss.width, T{1});
  }

  int64_t num_rows() const { return num_rows_; }
  int64_t margin() const { return margin_; }
  int64_t pitch() const { return pitch_; }

  // The first pixel of each plane; the next plane of the row is `pitch` further.
  const T* colours(int64_t row) const { return plane(row, 0); }
  const T* mask(int64_t row) const { return plane(row, loss_.num_channels); }
  const T* probabilities(int64_t row) const { return plane(row, loss_.num_channels + 1); }
  // 1 at the pixels of a row, 0 in its margins.
  const T* inside() const { return inside_.get() + margin_; }

  void fill(int64_t b, int64_t row) {
    const int64_t K = loss_.num_labels, C = loss_.num_channels, X = loss_.width;
    const auto* image = static_cast<const T*>(loss_.image);
    const auto* mask = static_cast<const T*>(loss_.mask);
    const auto* probabilities = static_cast<const T*>(loss_.probabilities);
    for (int64_t c = 0; c < C; ++c) fill_plane(image + ((b * C + c) * num_rows_ + row) * X, row, c);
    fill_plane(mask == nullptr ? inside() : mask + (b * num_rows_ + row) * X, row, C);
    for (int64_t k = 0; k < K; ++k) {
      fill_plane(probabilities + ((b * K + k) * num_rows_ + row) * X, row, C + 1 + k);
    }
  }

 private:
  int64_t num_planes() const { return loss_.num_channels + 1 + loss_.num_labels; }
  T* plane(int64_t row, int64_t index) const {
    return values_.get() + (row * num_planes() + index) * pitch_ + margin_;
  }
  void fill_plane(const T* pixels, int64_t row, int64_t index) {
    T* to = plane(row, index);
    std::fill_n(to - margin_, margin_, T{0});
    std::copy_n(pixels, loss_.width, to);
    std::fill(to + loss_.width, to - margin_ + pitch_, T{0});
  }

  const GatedCRFLoss& loss_;
  int64_t num_rows_;
  int64_t margin_;
  int64_t pitch_;
  Buffer<T> values_;
  Buffer<T> inside_;
};

// exp(-a step²) of every kernel, along one axis.
template <typename T>
class AxisFactors {
 public:
  AxisFactors(const GatedKernels& kernels, int64_t largest_step)
      : num_steps_(largest_step + 1), factors_(kernels.count * num_steps_) {
    for (int j = 0; j < kernels.count; ++j) {
      for (int64_t i = 0; i < num_steps_; ++i) {
        factors_[j * num_steps_ + i] = static_cast<T>(
            std::exp(-kernels.kernels[j].position_factor * static_cast<double>(i * i)));
      }
    }
  }
  T operator()(int kernel, int64_t step) const {
    return factors_[kernel * num_steps_ + std::abs(step)];
  }

 private:
  int64_t num_steps_;
  std::vector<T> factors_;
};

// The window of a pixel along one axis.
struct Window {
  int64_t first, last;

  Window(int64_t position, int64_t radius, int64_t size)
      : first(std::max<int64_t>(position - radius, 0)),
        last(std::min(position + std::min(radius, size), size - 1)) {}
};

// sums[j] += Σ_i affinities[i] * labels[j][i], for `Labels` labels and steps along a row.
template <int Labels, typename T>
void gather_block(const T* affinities,  // [count, lanes]
                  int64_t count,
                  const T* labels,  // of the first step, planes pitch apart
                  int64_t pitch,
                  T* sums) {  // [Labels, lanes]
  constexpr int V = kLanes<T>;
  Vec<T> sum[Labels];
#pragma GCC unroll 8
  for (int j = 0; j < Labels; ++j) sum[j] = load(sums + j * V);
  for (int64_t i = 0; i < count; ++i) {
    const Vec<T> affinity = load(affinities + i * V);
#pragma GCC unroll 8
    for (int j = 0; j < Labels; ++j) sum[j] += affinity * load(labels + j * pitch + i);
  }
#pragma GCC unroll 8
  for (int j = 0; j < Labels; ++j) store(sums + j * V, sum[j]);
}

template <typename T>
void gather(const T* affinities,  // [count, lanes]
            int64_t count,
            const T* labels,  // [K], of the first step, planes pitch apart
            int64_t pitch, int64_t num_labels,
            T* sums) {  // [K, lanes]
  const int64_t blocks = ceil_div(num_labels, kMostLabels);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = num_labels * block / blocks;
    const T* from = labels + first * pitch;
    T* to = sums + first * kLanes<T>;
    switch (num_labels * (block + 1) / blocks - first) {
      case 1: gather_block<1>(affinities, count, from, pitch, to); break;
      case 2: gather_block<2>(affinities, count, from, pitch, to); break;
      case 3: gather_block<3>(affinities, count, from, pitch, to); break;
      case 4: gather_block<4>(affinities, count, from, pitch, to); break;
      case 5: gather_block<5>(affinities, count, from, pitch, to); break;
      case 6: gather_block<6>(affinities, count, from, pitch, to); break;
      case 7: gather_block<7>(affinities, count, from, pitch, to); break;
      case 8: gather_block<8>(affinities, count, from, pitch, to); break;
    }
  }
}

// The loss of one image, a row at a time: any thread may take any row.
template <typename T>
class RowLoss {
 public:
  static constexpr int V = kLanes<T>;

  RowLoss(const GatedCRFLoss& loss, const GatedKernels& kernels, const PaddedRows<T>& rows)
      : loss_(loss),
        kernels_(kernels),
        rows_(rows),
        along_z_(kernels, std::min(loss.radius, loss.depth - 1)),
        along_y_(kernels, std::min(loss.radius, loss.height - 1)),
        along_x_(kernels, rows.margin()) {}

  // Of each thread.
  int64_t num_affinities() const { return (2 * rows_.margin() + 1) * V; }
  int64_t num_sums() const { return loss_.num_labels * V; }

  // The pairs of the pixels of a row: each of them once, or, with the gradient of the row's
  // pixels, both ways and half of the loss each.
  double operator()(int64_t b, int64_t row, T* affinities, T* sums) const {
    double total = 0;
    for (int64_t x = 0; x < loss_.width; x += V) {
      const int64_t count = std::min<int64_t>(V, loss_.width - x);
      std::fill_n(sums, num_sums(), T{0});
      Vec<T> pairs = visit_window(row, x, affinities, sums);
      const T* own = rows_.probabilities(row) + x;
      for (int64_t k = 0; k < loss_.num_labels; ++k) {
        pairs -= load(own + k * rows_.pitch()) * load(sums + k * V);
      }
      T parts[V];
      store(parts, pairs);
      for (int64_t i = 0; i < count; ++i) total += static_cast<double>(parts[i]);
      if (loss_.gradient != nullptr) store_gradient(b, row, x, count, sums);
    }
    return loss_.gradient != nullptr ? total / 2 : total;
  }

 private:
  // sums = Σ_q κ (m_p + m_q) S_q of the pixels from (row, x) on; returns Σ_q κ (m_p + m_q).
  Vec<T> visit_window(int64_t row, int64_t x, T* affinities, T* sums) const {
    const int64_t z = row / loss_.height, y = row % loss_.height;
    const int64_t margin = rows_.margin();
    const Window depths(z, loss_.radius, loss_.depth), heights(y, loss_.radius, loss_.height);
    const bool both_ways = loss_.gradient != nullptr;
    Vec<T> pairs = {};
    for (int64_t qz = both_ways ? depths.first : z; qz <= depths.last; ++qz) {
      for (int64_t qy = both_ways || qz > z ? heights.first : y; qy <= heights.last; ++qy) {
        const int64_t other = qz * loss_.height + qy;
        const auto visit = [&](int64_t first, int64_t last) {
          row_affinities(row, other, qz - z, qy - y, x, first, last, affinities, &pairs);
          gather(affinities, last - first + 1, rows_.probabilities(other) + x + first,
                 rows_.pitch(), loss_.num_labels, sums);
        };
        if (other != row) {
          visit(-margin, margin);
        } else {
          if (both_ways) visit(-margin, -1);
          visit(1, margin);
        }
      }
    }
    return pairs;
  }

  // affinities[i] = κ (m_p + m_q) for q = p + (dz, dy, first + i), 0 where q is outside of the
  // image. Added to `pairs` in the order in which gather() adds them: where all labels agree, the
  // two cancel to the last bit.
  void row_affinities(int64_t row, int64_t other, int64_t dz, int64_t dy, int64_t x, int64_t first,
                      int64_t last, T* affinities, Vec<T>* pairs) const {
    const int64_t pitch = rows_.pitch();
    const T* own_colours = rows_.colours(row) + x;
    const Vec<T> own_mask = load(rows_.mask(row) + x);
    for (int64_t dx = first; dx <= last; ++dx) {
      const T* colours = rows_.colours(other) + x + dx;
      Vec<T> distance = {};
      for (int64_t c = 0; c < loss_.num_channels; ++c) {
        const Vec<T> difference = load(own_colours + c * pitch) - load(colours + c * pitch);
        distance += difference * difference;
      }
      Vec<T> affinity = {};
      for (int j = 0; j < kernels_.count; ++j) {
        const GatedKernel& kernel = kernels_.kernels[j];
        const T near =
            static_cast<T>(kernel.weight) * along_z_(j, dz) * along_y_(j, dy) * along_x_(j, dx);
        if (kernel.colour_factor == 0) {
          affinity += near;
        } else {
          affinity += near * exp_nonpositive(distance * static_cast<T>(-kernel.colour_factor));
        }
      }
      affinity *= own_mask * load(rows_.inside() + x + dx) + load(rows_.mask(other) + x + dx);
      store(affinities + (dx - first) * V, affinity);
      *pairs += affinity;
    }
  }

  void store_gradient(int64_t b, int64_t row, int64_t x, int64_t count, const T* sums) const {
    auto* gradient = static_cast<T*>(loss_.gradient);
    for (int64_t k = 0; k < loss_.num_labels; ++k) {
      const int64_t plane_row = (b * loss_.num_labels + k) * rows_.num_rows() + row;
      store_up_to(gradient + plane_row * loss_.width + x, count, -load(sums + k * V));
    }
  }

  const GatedCRFLoss& loss_;
  const GatedKernels& kernels_;
  const PaddedRows<T>& rows_;
  AxisFactors<T> along_z_, along_y_, along_x_;
};

template <typename T>
T total_loss(const GatedCRFLoss& loss, const GatedKernels& kernels, int num_threads) {
  PaddedRows<T> rows(loss);
  const RowLoss<T> row_loss(loss, kernels, rows);
  const int64_t num_rows = rows.num_rows();
  num_threads = static_cast<int>(std::min<int64_t>(num_threads, num_rows));
  PerThread<Buffer<T>> affinities(num_threads, row_loss.num_affinities());
  PerThread<Buffer<T>> sums(num_threads, row_loss.num_sums());
  std::vector<double> totals(loss.batch_size * num_rows);

#pragma omp parallel num_threads(num_threads)
  for (int64_t b = 0; b < loss.batch_size; ++b) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) rows.fill(b, row);
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < num_rows; ++row) {
      totals[b * num_rows + row] = row_loss(b, row, affinities.mine().get(), sums.mine().get());
    }
  }
  double total = 0;
  for (double row_total : totals) total += row_total;
  return static_cast<T>(total);
}

}  // namespace

void gated_crf_loss(const GatedCRFLoss& loss, const GatedKernels& kernels,
                    const ExecutionContext& ctx) {
  dispatch_native_floating(loss.dtype, "probabilities", [&](auto tag) {
    using T = decltype(tag);
    *static_cast<T*>(loss.total) = total_loss<T>(loss, kernels, ctx.num_threads);
  });
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(gated_crf_loss)

void gated_crf_loss(const GatedCRFLoss& loss, const GatedKernels& kernels,
                    const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(gated_crf_loss)(loss, kernels, ctx);
}

}  // namespace deepcrf::cpu
#endif
