// Matrix tiles (Intel AMX): products of 16 x 32 by 32 x 16 bfloat16 into 16 x 16 floats.
//
// Of the eight tiles, four hold sums and four the operands of a step:
//   sums[row, column] += sum over 16 pairs of  A[row, pair] . B[pair, column],
// a pair being two neighbouring bfloat16 in 32 bits. A row of any tile is 64 bytes.
// Tests compile the same sources over an emulation of these instructions.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/words.h"

#ifdef DEEPCRF_EMULATE_TILES
#include "tiles_on_host/tiles.h"
#endif

namespace deepcrf::cpu::DEEPCRF_ISA {

constexpr int64_t kTileRows = 16;  // also columns of sums, and pairs of a step
constexpr int64_t kTileElements = kTileRows * kTileRows;  // of 32 bits
constexpr int64_t kTileDepth = 2 * kTileRows;             // elements that a step sums over

// What LDTILECFG reads and STTILECFG writes.
struct alignas(64) TileShapes {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64);

#ifdef DEEPCRF_EMULATE_TILES
using namespace tiles_on_host;
#else

// The whole structure is named as an operand: an operand of fewer bytes would let the compiler drop
// what was written to the others.
inline void load_shapes(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void store_shapes(TileShapes& shapes) { asm volatile("sttilecfg %0" : "=m"(shapes)); }
inline void release_tiles() { asm volatile("tilerelease"); }

template <int Tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}

// Rows `stride` bytes apart.
template <int Tile>
inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}

template <int Sums, int A, int B>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(A), "i"(B));
}

#endif

// Tiles of 16 rows of 64 bytes for this thread while it lives. What was set before comes back, as
// other libraries remember what they set.
class TileScope {
 public:
  TileScope() {
    store_shapes(former_);
    TileShapes shapes = {};
    shapes.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.row_bytes[tile] = 64;
      shapes.rows[tile] = kTileRows;
    }
    load_shapes(shapes);
  }
  ~TileScope() {
    if (former_.palette == 0) {
      release_tiles();
    } else {
      load_shapes(former_);
    }
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  TileShapes former_;
};

// A matrix as tiles are read from it: tile (i, step) of an operand A, or (step, j) of B, begins at
// data + tile * tile_step + step * depth_step, all in 32-bit elements.
//
// An element stands for itself, rounded to bfloat16, or is a sum of two: then what rounding left is
// a matrix of the same form, remainder_step further.
struct TileOperand {
  const void* data;
  int64_t tile_step;
  int64_t depth_step;
  int64_t row_step;
  int64_t remainder_step;

  const void* at(int64_t tile, int64_t step) const {
    return static_cast<const uint32_t*>(data) + tile * tile_step + step * depth_step;
  }
  TileOperand from_tile(int64_t tile) const {
    return {at(tile, 0), tile_step, depth_step, row_step, remainder_step};
  }
  TileOperand remainder() const {
    return {static_cast<const uint32_t*>(data) + remainder_step, tile_step, depth_step, row_step,
            0};
  }
};

// The tile of sums before a product: what is there, or zeros.
template <int Tile>
inline void begin_sums(const float* sums, int64_t stride, bool fresh) {
  if (fresh) {
    zero_tile<Tile>();
  } else {
    load_tile<Tile>(sums, stride);
  }
}

// Tiles 0 to 3 += A B of one step. An operand that is not to be loaded is there from a step before.
template <int Rows, int Columns, bool LoadA = true, bool LoadB = true>
inline void multiply_step(int64_t step, const TileOperand& a, const TileOperand& b) {
  const int64_t a_stride = a.row_step * 4, b_stride = b.row_step * 4;
  if constexpr (LoadA) load_tile<4>(a.at(0, step), a_stride);
  if constexpr (LoadB) load_tile<6>(b.at(0, step), b_stride);
  multiply_tiles<0, 4, 6>();
  if constexpr (Columns == 2) {
    if constexpr (LoadB) load_tile<7>(b.at(1, step), b_stride);
    multiply_tiles<1, 4, 7>();
  }
  if constexpr (Rows == 2) {
    if constexpr (LoadA) load_tile<5>(a.at(1, step), a_stride);
    multiply_tiles<2, 5, 6>();
    if constexpr (Columns == 2) multiply_tiles<3, 5, 7>();
  }
}

// sums[Rows, Columns] (tiles) += A B over `steps`; where `fresh`, = A B. Of elements that are sums
// of two, the product of both remainders is left out: it is as small as what is left of them. Every
// step is added whole, so that the sums do not depend on how the steps are parted into calls.
template <int Summands, int Rows, int Columns>
inline void multiply_block(int64_t steps, const TileOperand& a, const TileOperand& b,
                           float* sums,  // rows sums_row apart
                           int64_t sums_row, bool fresh) {
  static_assert(Summands <= 2 && Rows <= 2 && Columns <= 2);
  const int64_t sums_stride = sums_row * 4;
  float* below = sums + kTileRows * sums_row;
  begin_sums<0>(sums, sums_stride, fresh);
  if constexpr (Columns == 2) begin_sums<1>(sums + kTileRows, sums_stride, fresh);
  if constexpr (Rows == 2) begin_sums<2>(below, sums_stride, fresh);
  if constexpr (Rows == 2 && Columns == 2) begin_sums<3>(below + kTileRows, sums_stride, fresh);
  for (int64_t step = 0; step < steps; ++step) {
    if constexpr (Summands == 2) {
      multiply_step<Rows, Columns>(step, a, b.remainder());
      multiply_step<Rows, Columns, false, true>(step, a, b);
      multiply_step<Rows, Columns, true, false>(step, a.remainder(), b);
    } else {
      multiply_step<Rows, Columns>(step, a, b);
    }
  }
  store_tile<0>(sums, sums_stride);
  if constexpr (Columns == 2) store_tile<1>(sums + kTileRows, sums_stride);
  if constexpr (Rows == 2) store_tile<2>(below, sums_stride);
  if constexpr (Rows == 2 && Columns == 2) store_tile<3>(below + kTileRows, sums_stride);
}

// The same for any number of tiles. B's tiles of two columns stay in L1 while all rows pass.
template <int Summands>
inline void multiply_tiles_into(int64_t rows, int64_t columns, int64_t steps, const TileOperand& a,
                                const TileOperand& b, float* sums, int64_t sums_row, bool fresh) {
  for (int64_t j = 0; j < columns; j += 2) {
    const TileOperand b_columns = b.from_tile(j);
    for (int64_t i = 0; i < rows; i += 2) {
      float* block = sums + i * kTileRows * sums_row + j * kTileRows;
      const bool two_rows = i + 1 < rows, two_columns = j + 1 < columns;
      const auto multiply =
          two_rows
              ? (two_columns ? multiply_block<Summands, 2, 2> : multiply_block<Summands, 2, 1>)
              : (two_columns ? multiply_block<Summands, 1, 2> : multiply_block<Summands, 1, 1>);
      multiply(steps, a.from_tile(i), b_columns, block, sums_row, fresh);
    }
  }
}

// Calls store(i, pairs) with the pairs of two vectors as sums of Summands bfloat16 each.
template <int Summands, typename Store>
inline void split_pairs(Vec<float> first, Vec<float> second, Store&& store) {
#pragma GCC unroll 2
  for (int i = 0; i < Summands; ++i) {
    const Vec<BfloatPair> pairs = pack_pairs(first, second);
    store(i, pairs);
    first -= firsts(pairs);
    second -= seconds(pairs);
  }
}

// The same of neighbours in one vector; what rounding left goes remainder_step words further.
template <int Summands>
inline void store_split(bfloat16* to, int64_t remainder_step, Vec<float> v) {
#pragma GCC unroll 2
  for (int i = 0; i < Summands; ++i) {
    bfloat16* rounded = to + 2 * i * remainder_step;
    store_bfloat16(reinterpret_cast<BfloatPair*>(rounded), v);
    if (i + 1 < Summands) v -= load_up_to(rounded, kTileRows);
  }
}

// Calls function(T{}) with the dtype of a potential that tiles multiply.
template <class Function>
inline void dispatch_tile_dtype(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::float32: return function(float{});
    case DType::float16: return function(float16{});
    default: return function(bfloat16{});
  }
}

// Where a lane's number has the bit Width, a takes b's lane without it, and b keeps its own; where
// not, the other way round.
template <int Width, int... Lane>
inline void exchange_words(Vec<int32_t>& a, Vec<int32_t>& b, std::integer_sequence<int, Lane...>) {
  const Vec<int32_t> first = a, second = b;
#if defined(__clang__)
  a = __builtin_shufflevector(first, second, (Lane & Width ? (Lane ^ Width) + 16 : Lane)...);
  b = __builtin_shufflevector(first, second, (Lane & Width ? Lane + 16 : Lane ^ Width)...);
#else
  a = __builtin_shuffle(first, second,
                        Vec<int32_t>{(Lane & Width ? (Lane ^ Width) + 16 : Lane)...});
  b = __builtin_shuffle(first, second, Vec<int32_t>{(Lane & Width ? Lane + 16 : Lane ^ Width)...});
#endif
}

// Transposes 16 rows of 16 words of 32 bits.
template <int Width = kTileRows / 2>
inline void transpose_words(Vec<int32_t> (&rows)[kTileRows]) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    if ((i & Width) == 0) {
      exchange_words<Width>(rows[i], rows[i + Width], std::make_integer_sequence<int, kTileRows>{});
    }
  }
  if constexpr (Width > 1) transpose_words<Width / 2>(rows);
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
