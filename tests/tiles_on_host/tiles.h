// The instructions of csrc/cpu/tiles.h in plain C++, with what the processor checks, and more:
// every tile that is read must have been written since the shapes were set. A fault ends the
// process.
#pragma once

#include <cstdint>

namespace deepcrf::cpu::amx {
struct TileShapes;
}

namespace tiles_on_host {

void load_shapes(const deepcrf::cpu::amx::TileShapes& shapes);
void store_shapes(deepcrf::cpu::amx::TileShapes& shapes);
void release_tiles();

void zero(int tile);
void load(int tile, const void* from, int64_t stride);
void store(int tile, void* to, int64_t stride);
void multiply(int sums, int a, int b);

template <int Tile>
void zero_tile() {
  zero(Tile);
}
template <int Tile>
void load_tile(const void* from, int64_t stride) {
  load(Tile, from, stride);
}
template <int Tile>
void store_tile(void* to, int64_t stride) {
  store(Tile, to, stride);
}
template <int Sums, int A, int B>
void multiply_tiles() {
  multiply(Sums, A, B);
}

}  // namespace tiles_on_host
