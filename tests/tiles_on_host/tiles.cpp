#include "tiles_on_host/tiles.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/tiles.h"

namespace tiles_on_host {

namespace {

using deepcrf::bfloat16;
using deepcrf::cpu::amx::TileShapes;

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct State {
  TileShapes shapes = {};
  unsigned char data[kTiles][kRows][kRowBytes];
  bool written[kTiles] = {};
};
thread_local State state;

// Threads of a parallel region cannot throw out of it.
void require(bool condition, const char* fault, int tile) {
  if (condition) return;
  std::fprintf(stderr, "tiles_on_host: tile %d: %s\n", tile, fault);
  std::abort();
}

int rows(int tile) { return state.shapes.rows[tile]; }
int row_bytes(int tile) { return state.shapes.row_bytes[tile]; }

void require_shape(int tile) {
  require(tile >= 0 && tile < kTiles, "there are tiles 0 to 7", tile);
  require(state.shapes.palette == 1, "no shapes are set", tile);
  require(rows(tile) > 0 && row_bytes(tile) > 0, "it has no shape", tile);
}

void require_written(int tile) {
  require_shape(tile);
  require(state.written[tile], "read before it was written", tile);
}

bfloat16 element(int tile, int row, int column) {
  bfloat16 value;
  std::memcpy(&value, &state.data[tile][row][column * sizeof(value)], sizeof(value));
  return value;
}

}  // namespace

void load_shapes(const TileShapes& shapes) {
  require(shapes.palette == 1, "the palette must be 1", -1);
  require(shapes.start_row == 0, "the start row must be 0", -1);
  for (unsigned char byte : shapes.reserved) require(byte == 0, "reserved bytes must be 0", -1);
  for (int tile = 0; tile < 16; ++tile) {
    const bool exists = tile < kTiles;
    const bool fits = shapes.rows[tile] <= (exists ? kRows : 0) &&
                      shapes.row_bytes[tile] <= (exists ? kRowBytes : 0) &&
                      (shapes.rows[tile] == 0) == (shapes.row_bytes[tile] == 0);
    require(fits, "at most 16 rows of 64 bytes, of eight tiles", tile);
  }
  state = State{};
  state.shapes = shapes;
}

void store_shapes(TileShapes& shapes) { shapes = state.shapes; }

void release_tiles() { state = State{}; }

void zero(int tile) {
  require_shape(tile);
  std::memset(state.data[tile], 0, sizeof(state.data[tile]));
  state.written[tile] = true;
}

void load(int tile, const void* from, int64_t stride) {
  require_shape(tile);
  std::memset(state.data[tile], 0, sizeof(state.data[tile]));
  for (int row = 0; row < rows(tile); ++row) {
    std::memcpy(state.data[tile][row], static_cast<const char*>(from) + row * stride,
                row_bytes(tile));
  }
  state.written[tile] = true;
}

void store(int tile, void* to, int64_t stride) {
  require_written(tile);
  for (int row = 0; row < rows(tile); ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, state.data[tile][row], row_bytes(tile));
  }
}

void multiply(int sums, int a, int b) {
  for (int tile : {sums, a, b}) require_written(tile);
  require(sums != a && sums != b && a != b, "sums and operands must be three tiles", sums);
  require(rows(a) == rows(sums), "A must have the rows of the sums", a);
  require(row_bytes(b) == row_bytes(sums), "B must have the columns of the sums", b);
  require(row_bytes(a) == 4 * rows(b), "A must have as many pairs as B has rows", a);
  // B as [row, number of its pairs, column]; all is zero outside of the shapes.
  float right[kRows][2][kRows];
  for (int k = 0; k < kRows; ++k) {
    for (int n = 0; n < kRows; ++n) {
      for (int i = 0; i < 2; ++i) right[k][i][n] = element(b, k, 2 * n + i);
    }
  }
  for (int m = 0; m < rows(sums); ++m) {
    float row[kRows];
    std::memcpy(row, state.data[sums][m], sizeof(row));
    for (int k = 0; k < rows(b); ++k) {
      for (int i = 0; i < 2; ++i) {
        const float left = element(a, m, 2 * k + i);
        for (int n = 0; n < kRows; ++n) row[n] += left * right[k][i][n];
      }
    }
    std::memcpy(state.data[sums][m], row, row_bytes(sums));
  }
}

}  // namespace tiles_on_host
