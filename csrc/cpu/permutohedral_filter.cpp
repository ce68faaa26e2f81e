#include "cpu/dispatch.h"
#include "cpu/lattice_filter.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

// Copies rows of C values. A few are copied one by one, which a call for each row would take
// longer for.
template <int Few, typename T>
void copy_rows(int64_t count, int64_t num_channels, const T* from, int64_t from_width, T* to,
               int64_t to_width) {
  if (num_channels > Few) {
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(from + i * from_width, num_channels, to + i * to_width);
    }
  } else {
    for (int64_t c = 0; c < num_channels; ++c) {
      for (int64_t i = 0; i < count; ++i) to[i * to_width + c] = from[i * from_width + c];
    }
  }
}

template <typename Row>
void filter(const Row& row, const PermutohedralLattice& lattice, int64_t num_channels,
            const typename Row::T* values, bool transposed, typename Row::T* filtered,
            int num_threads) {
  using T = typename Row::T;
  const int64_t N = lattice.num_values, C = num_channels, W = row.width();
  LatticeValues<Row> state(row, lattice);
  const int64_t blocks = state.num_blocks(), block = state.block_size();
  num_threads = static_cast<int>(std::min<int64_t>(num_threads, blocks));
  PerThread<Buffer<T>> sources(num_threads, state.largest_block() * W);
  PerThread<Buffer<T>> tiles(num_threads, kTile * W);
  Buffer<T> factor(W);
  std::fill_n(factor.get(), W, static_cast<T>(lattice_scale(lattice.num_dims)));

#pragma omp parallel num_threads(num_threads)
  {
    T* tile = tiles.mine().get();
    std::fill_n(tile, kTile * W, T{0});
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; ++b) {
      state.clear_block(b);
      for (int64_t n = b * block; n < std::min(N, (b + 1) * block); n += kTile) {
        const int64_t count = std::min(kTile, N - n);
        copy_rows<Row::V>(count, C, values + n * C, C, tile, W);
        state.splat_tile(b, n, count, nullptr, tile);
      }
    }
    state.blur(transposed);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; ++b) {
      T* source = sources.mine().get();
      state.copy_block(b, factor.get(), source);
      for (int64_t n = b * block; n < std::min(N, (b + 1) * block); n += kTile) {
        const int64_t count = std::min(kTile, N - n);
        state.slice_tile(source, n, count, nullptr, nullptr, tile);
        copy_rows<Row::V>(count, C, tile, W, filtered + n * C, C);
      }
    }
  }
}

}  // namespace

void permutohedral_filter(const PermutohedralLattice& lattice, DType dtype, int64_t num_channels,
                          const void* values, bool transposed, void* filtered,
                          const ExecutionContext& ctx) {
  dispatch_native_floating(dtype, "values", [&](auto tag) {
    using T = decltype(tag);
    with_row<T>(num_channels, [&](auto row) {
      filter(row, lattice, num_channels, static_cast<const T*>(values), transposed,
             static_cast<T*>(filtered), ctx.num_threads);
    });
  });
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(permutohedral_filter)

void permutohedral_filter(const PermutohedralLattice& lattice, DType dtype, int64_t num_channels,
                          const void* values, bool transposed, void* filtered,
                          const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(permutohedral_filter)
  (lattice, dtype, num_channels, values, transposed, filtered, ctx);
}

}  // namespace deepcrf::cpu
#endif
