// The corners of the simplices around all positions as lattice points, and a hash table of them
// that threads fill at once, without locks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace deepcrf::cuda {

// Corner e is vertex e % (d + 1), by colour, of the simplex around position e / (d + 1). Lattice
// points are compared by all but the last of their coordinates, which sum to zero.
struct Corners {
  int num_dims;            // d
  const int32_t* origins;  // [N, d], the vertex of colour 0
  const uint8_t* ranks;    // [N, d + 1], of the coordinates, by descending distance from it
};

// The lattice point of a corner, moved by -1, 0 or 1 steps along an axis. One step adds 1 to every
// coordinate but that of the axis, which it lowers by d.
struct LatticePoint {
  int num_dims;
  const int32_t* origin;  // [d]
  const uint8_t* rank;    // [d + 1]
  int colour;
  int steps;
  int axis;

  __device__ LatticePoint(const Corners& corners, int64_t corner, int steps = 0, int axis = 0)
      : num_dims(corners.num_dims), steps(steps), axis(axis) {
    const int64_t position = corner / (num_dims + 1);
    origin = corners.origins + position * num_dims;
    rank = corners.ranks + position * (num_dims + 1);
    colour = static_cast<int>(corner - position * (num_dims + 1));
  }

  // From colour 0 on, a step to the next colour goes along the axis of rank d, d - 1, ...
  __device__ int coordinate(int i) const {
    const int stepped = rank[i] > num_dims - colour ? colour - (num_dims + 1) : colour;
    return origin[i] + stepped + (i == axis ? -num_dims * steps : steps);
  }

  __device__ bool operator==(const LatticePoint& other) const {
    for (int i = 0; i < num_dims; ++i) {
      if (coordinate(i) != other.coordinate(i)) return false;
    }
    return true;
  }

  __device__ uint64_t hash() const {
    uint64_t bits = 0;
    for (int i = 0; i < num_dims; ++i) {
      bits = (bits ^ static_cast<uint32_t>(coordinate(i))) * 0x9E3779B97F4A7C15u;
      bits ^= bits >> 32;
    }
    return bits;
  }
};

// A value that other threads may be changing by atomics.
__device__ inline unsigned long long load_relaxed(unsigned long long* address) {
#ifdef __CUDACC__
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
               : "=l"(value)
               : "l"(__cvta_generic_to_global(address))
               : "memory");
  return value;
#else
  return atomicOr(address, 0ull);
#endif
}

// Open addressing, at most half full, for keys of any number of coordinates: a slot holds half of
// the key's hash above the number of a corner that has the key. Once a slot is taken it keeps its
// key; of the corners that have it, the first stays. So a slot depends on the order in which
// threads come, but the corner in it does not.
struct CornerTable {
  static constexpr unsigned long long kEmpty = ~0ull;

  Corners corners;
  int64_t num_slots;
  unsigned long long* slots;  // [num_slots], kEmpty at first

  __device__ int64_t first_slot(uint64_t hash) const {
    return static_cast<int64_t>((hash & 0xffffffffu) * static_cast<uint64_t>(num_slots) >> 32);
  }
  __device__ bool holds(unsigned long long slot, uint64_t hash, const LatticePoint& point) const {
    return slot >> 32 == hash >> 32 && point == LatticePoint(corners, corner_in(slot));
  }
  __device__ static int32_t corner_in(unsigned long long slot) {
    return static_cast<int32_t>(slot & 0xffffffffu);
  }

  // The slot of a corner's lattice point.
  __device__ int64_t insert(int64_t corner) const {
    const LatticePoint point(corners, corner);
    const uint64_t hash = point.hash();
    const unsigned long long entry = (hash >> 32 << 32) | static_cast<uint64_t>(corner);
    int64_t i = first_slot(hash);
    while (true) {
      unsigned long long slot = load_relaxed(slots + i);
      if (slot == kEmpty) {
        slot = atomicCAS(slots + i, kEmpty, entry);
        if (slot == kEmpty) return i;
      }
      if (holds(slot, hash, point)) {
        if (entry < slot) atomicMin(slots + i, entry);
        return i;
      }
      i = i + 1 == num_slots ? 0 : i + 1;
    }
  }

  // The first corner at a lattice point, or -1. Not while others insert.
  __device__ int32_t find(const LatticePoint& point) const {
    const uint64_t hash = point.hash();
    int64_t i = first_slot(hash);
    while (slots[i] != kEmpty) {
      if (holds(slots[i], hash, point)) return corner_in(slots[i]);
      i = i + 1 == num_slots ? 0 : i + 1;
    }
    return -1;
  }
};

}  // namespace deepcrf::cuda
