// Splat, blur and slice on a permutohedral lattice, on rows of channels padded to whole vectors.
#pragma once

#include "core/lattice_embedding.h"
#include "cpu/planes.h"
#include "cpu/transpose.h"
#include "ops/permutohedral.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Positions that a kernel takes at a time: their rows stay near, in the L1 or L2 cache.
constexpr int64_t kTile = 128;

// A row of channels: R vectors of V lanes, the last one padded. R is 0 where only the constructor's
// argument says it.
template <typename T_, int V_, int R>
struct Row {
  using T = T_;
  static constexpr int V = V_;
  static constexpr int kStep = R > 0 ? R : 8;  // vectors that are held in registers
  using Vector = typename RowVector<T, V>::type;

  explicit Row(int64_t num_channels) : vectors_(ceil_div(num_channels, V)) {}
  int64_t vectors() const { return R > 0 ? R : vectors_; }
  int64_t width() const { return vectors() * V; }

  static Vector load(const T* from) {
    Vector v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static void store(T* to, Vector v) { std::memcpy(to, &v, sizeof(v)); }

 private:
  int64_t vectors_;
};

// Calls function(Row<...>(K)) with the row type that pads K least.
template <typename T, typename Function>
void with_row(int64_t num_channels, Function&& function) {
  constexpr int V = kLanes<T>;
  const auto call = [&](auto row) { function(row); };
  if constexpr (sizeof(T) == 4) {
    if (num_channels <= 4) return call(Row<T, 4, 1>(num_channels));
    if constexpr (V > 8) {
      if (num_channels <= 8) return call(Row<T, 8, 1>(num_channels));
      if (num_channels > 16 && num_channels <= 24) return call(Row<T, 8, 3>(num_channels));
    }
    switch (ceil_div(num_channels, V)) {
      case 1: return call(Row<T, V, 1>(num_channels));
      case 2: return call(Row<T, V, 2>(num_channels));
      case 3: return call(Row<T, V, 3>(num_channels));
      default: break;
    }
  }
  call(Row<T, V, 0>(num_channels));
}

// Calls function with the number of vertices of a simplex, a constant for the usual ones; 0 stands
// for d + 1 as the lattice says.
template <typename Function>
void with_corners(const PermutohedralLattice& lattice, Function&& function) {
  switch (lattice.num_dims) {
    case 2: return function(std::integral_constant<int, 3>{});
    case 3: return function(std::integral_constant<int, 4>{});
    case 4: return function(std::integral_constant<int, 5>{});
    case 5: return function(std::integral_constant<int, 6>{});
    default: return function(std::integral_constant<int, 0>{});
  }
}

// Calls function(r, S) for the vectors r..r+S-1 of a row, S a constant, until all have had their
// turn: sums of S vectors are held in registers, as many as are left or half as many and so on.
template <int Step, typename Row, typename Function>
void for_vectors_from(int64_t r, const Row& row, Function&& function) {
  for (; r + Step <= row.vectors(); r += Step) function(r, std::integral_constant<int, Step>{});
  if constexpr (Step > 1) for_vectors_from<Step / 2>(r, row, function);
}

template <typename Row, typename Function>
void for_vectors(const Row& row, Function&& function) {
  for_vectors_from<Row::kStep>(0, row, function);
}

// entries += scale * weight * value, over the vertices of the positions first..first+count-1. Those
// of the next tile are fetched.
template <int Corners, typename Row>
void splat(const Row& row, const PermutohedralLattice& lattice, int64_t first, int64_t count,
           const typename Row::T* scale,   // [N], or null for one
           const typename Row::T* values,  // [count, width]
           typename Row::T* entries) {     // [entries of the block, width]
  using T = typename Row::T;
  const int64_t corners = Corners > 0 ? Corners : lattice.num_dims + 1;
  for (int64_t i = 0; i < count; ++i) {
    const int16_t* vertices = lattice.vertices + (first + i) * corners;
    const float* weights = lattice.weights + (first + i) * corners;
    __builtin_prefetch(weights + kTile * corners);
    if (i % 4 == 0) __builtin_prefetch(vertices + kTile * corners);
    const T factor = scale == nullptr ? T{1} : scale[first + i];
    for_vectors(row, [&](int64_t r, auto step) {
      typename Row::Vector value[step];
      for (int s = 0; s < step; ++s) {
        value[s] = factor * Row::load(values + i * row.width() + (r + s) * Row::V);
      }
      for (int64_t c = 0; c < corners; ++c) {
        T* entry = entries + static_cast<uint16_t>(vertices[c]) * row.width() + r * Row::V;
        const T weight = static_cast<T>(weights[c]);
        for (int s = 0; s < step; ++s) {
          Row::store(entry + s * Row::V, Row::load(entry + s * Row::V) + weight * value[s]);
        }
      }
    });
  }
}

// values = base + scale * sum of weight * entry, base null for zeros.
template <int Corners, typename Row>
void slice(const Row& row, const PermutohedralLattice& lattice, int64_t first, int64_t count,
           const typename Row::T* scale,    // [N], or null for one
           const typename Row::T* entries,  // [entries of the block, width]
           const typename Row::T* base,     // [count, width], or null; may be values
           typename Row::T* values) {       // [count, width]
  using T = typename Row::T;
  const int64_t corners = Corners > 0 ? Corners : lattice.num_dims + 1;
  for (int64_t i = 0; i < count; ++i) {
    const int16_t* vertices = lattice.vertices + (first + i) * corners;
    const float* weights = lattice.weights + (first + i) * corners;
    const T factor = scale == nullptr ? T{1} : scale[first + i];
    for_vectors(row, [&](int64_t r, auto step) {
      typename Row::Vector sums[step] = {};
      for (int64_t c = 0; c < corners; ++c) {
        const T* entry = entries + static_cast<uint16_t>(vertices[c]) * row.width() + r * Row::V;
        const T weight = static_cast<T>(weights[c]);
        for (int s = 0; s < step; ++s) sums[s] += weight * Row::load(entry + s * Row::V);
      }
      for (int s = 0; s < step; ++s) {
        const int64_t v = i * row.width() + (r + s) * Row::V;
        const typename Row::Vector start =
            base == nullptr ? typename Row::Vector{} : Row::load(base + v);
        Row::store(values + v, start + factor * sums[s]);
      }
    });
  }
}

// The values of one lattice while it filters. Methods marked "by all threads" are called by every
// thread of a parallel region and end with a barrier.
template <typename Row>
class LatticeValues {
 public:
  using T = typename Row::T;

  LatticeValues(const Row& row, const PermutohedralLattice& lattice)
      : row_(row),
        lattice_(lattice),
        block_size_(lattice_block_size(lattice.num_dims)),
        entries_(num_entries() * row.width()),
        points_((lattice.num_points + 1) * row.width()),
        blurred_((lattice.num_points + 1) * row.width()) {
    // The last row stands for neighbours that do not exist.
    const int64_t last = lattice.num_points * row.width();
    std::fill_n(points_.get() + last, row.width(), T{0});
    std::fill_n(blurred_.get() + last, row.width(), T{0});
  }

  int64_t block_size() const { return block_size_; }
  int64_t num_blocks() const { return ceil_div(lattice_.num_values, block_size_); }
  int64_t largest_block() const {
    int64_t largest = 0;
    for (int64_t b = 0; b < num_blocks(); ++b) largest = std::max(largest, block_entries(b));
    return largest;
  }

  void clear_block(int64_t b) { std::fill_n(block(b), block_entries(b) * row_.width(), T{0}); }

  void splat_tile(int64_t b, int64_t first, int64_t count, const T* scale, const T* values) {
    with_corners(lattice_, [&](auto corners) {
      splat<decltype(corners)::value>(row_, lattice_, first, count, scale, values, block(b));
    });
  }

  void slice_tile(const T* entries, int64_t first, int64_t count, const T* scale, const T* base,
                  T* values) const {
    with_corners(lattice_, [&](auto corners) {
      slice<decltype(corners)::value>(row_, lattice_, first, count, scale, entries, base, values);
    });
  }

  // Sums the entries of every lattice point, then blurs. By all threads.
  void blur(bool transposed) {
    gather_points();
    const int64_t axes = lattice_.num_dims + 1;
    for (int64_t axis = 0; axis < axes; ++axis) {
      const bool odd = axis % 2 == 1;
      blur_axis(transposed ? axes - 1 - axis : axis, odd ? blurred_.get() : points_.get(),
                odd ? points_.get() : blurred_.get());
    }
  }

  // The points after blur().
  T* result() { return (lattice_.num_dims + 1) % 2 == 1 ? blurred_.get() : points_.get(); }

  // entries = factor * the blurred points of block b.
  void copy_block(int64_t b, const T* factor,  // [width]
                  T* entries) {                // [entries of the block, width]
    const T* from = result();
    const int32_t* points = lattice_.entry_points + lattice_.block_offsets[b];
    for (int64_t e = 0; e < block_entries(b); ++e) {
      for (int64_t r = 0; r < row_.vectors(); ++r) {
        Row::store(entries + e * row_.width() + r * Row::V,
                   Row::load(factor + r * Row::V) *
                       Row::load(from + points[e] * row_.width() + r * Row::V));
      }
    }
  }

 private:
  int64_t num_entries() const { return lattice_.block_offsets[num_blocks()]; }
  int64_t block_entries(int64_t b) const {
    return lattice_.block_offsets[b + 1] - lattice_.block_offsets[b];
  }
  T* block(int64_t b) { return entries_.get() + lattice_.block_offsets[b] * row_.width(); }

  // The entries of a point lie far apart: those that come soon are fetched ahead.
  void gather_points() {
    constexpr int64_t kAhead = 16;
    const int64_t entries = lattice_.point_offsets[lattice_.num_points];
#pragma omp for schedule(static)
    for (int64_t m = 0; m < lattice_.num_points; ++m) {
      T* to = points_.get() + m * row_.width();
      const int64_t begin = lattice_.point_offsets[m], end = lattice_.point_offsets[m + 1];
      for (int64_t e = begin; e < end && e + kAhead < entries; ++e) prefetch(entry(e + kAhead));
      for_vectors(row_, [&](int64_t r, auto step) {
        typename Row::Vector sums[step] = {};
        for (int64_t e = begin; e < end; ++e) {
          for (int s = 0; s < step; ++s) sums[s] += Row::load(entry(e) + (r + s) * Row::V);
        }
        for (int s = 0; s < step; ++s) Row::store(to + (r + s) * Row::V, sums[s]);
      });
    }
  }

  const T* entry(int64_t e) const {
    return entries_.get() + lattice_.point_entries[e] * row_.width();
  }
  void prefetch(const T* row) const {
    for (int64_t i = 0; i < row_.width(); i += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(row + i);
    }
  }

  void blur_axis(int64_t axis, const T* from, T* to) {
    const int32_t* pairs = lattice_.neighbours + axis * lattice_.num_points * 2;
#pragma omp for schedule(static)
    for (int64_t m = 0; m < lattice_.num_points; ++m) {
      const T* centre = from + m * row_.width();
      const T* below = from + pairs[m * 2] * row_.width();
      const T* above = from + pairs[m * 2 + 1] * row_.width();
      for (int64_t r = 0; r < row_.vectors(); ++r) {
        const int64_t v = r * Row::V;
        Row::store(to + m * row_.width() + v,
                   Row::load(centre + v) + T(0.5) * (Row::load(below + v) + Row::load(above + v)));
      }
    }
  }

  Row row_;
  PermutohedralLattice lattice_;
  int64_t block_size_;
  Buffer<T> entries_;  // [entries, width]
  Buffer<T> points_;   // [M + 1, width]
  Buffer<T> blurred_;  // [M + 1, width]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
