// Plane layout of the node and weight arrays of a factored potential.
//
// The feature axis is cut into planes of one vector: [N, D] becomes [P, N, lanes]. A kernel works
// on one or a few planes at a time, so the neighbours of a node are read as short contiguous runs
// and everything a plane touches stays in the L2 cache. The padding is zero, which adds nothing to
// any sum.
#pragma once

#include <omp.h>

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "core/huge_pages.h"
#include "cpu/lanes.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Uninitialised storage aligned to whole vectors.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new(sizeof(T) * std::max<int64_t>(size, 1), kAlignment))) {
    advise_huge_pages(data_.get(), sizeof(T) * size);
  }
  T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Delete> data_;
};

// One workspace per thread of a parallel region, made before it: nothing may throw inside.
template <typename Workspace>
class PerThread {
 public:
  template <typename... Arguments>
  explicit PerThread(int num_threads, const Arguments&... arguments) {
    workspaces_.reserve(num_threads);
    for (int i = 0; i < num_threads; ++i) workspaces_.emplace_back(arguments...);
  }
  Workspace& mine() { return workspaces_[omp_get_thread_num()]; }

 private:
  std::vector<Workspace> workspaces_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t multiple) { return ceil_div(a, multiple) * multiple; }

// A size in near-equal parts, divided once: divisions count where parts are small.
struct NearEqualParts {
  NearEqualParts(int64_t size, int64_t count)
      : count(count), least(size / count), least_count(count - size % count) {}

  int64_t size(int64_t part) const { return least + (part >= least_count); }

  int64_t count;
  int64_t least, least_count;  // the first least_count parts; the others have one more
};

// Number of planes for `size` features, a multiple of `group`.
template <typename T>
int64_t num_planes(int64_t size, int64_t group = 1) {
  return round_up(ceil_div(size, kLanes<T>), group);
}

// One plane of rows of features (nodes, or entries of the weight). Call with plane = 0..P-1, from
// any thread.
template <typename T>
void pack_plane(const T* features,  // [rows, D]
                int64_t rows, int64_t num_features, int64_t plane,
                T* planes) {  // [P, rows, lanes]
  constexpr int V = kLanes<T>;
  const int64_t count = std::max<int64_t>(num_features - plane * V, 0);
  T* out = planes + plane * rows * V;
  for (int64_t row = 0; row < rows; ++row) {
    store(out + row * V, load_up_to(features + row * num_features + plane * V, count));
  }
}

// The inverse, for one plane: drops the padding.
template <typename T>
void unpack_plane(const T* plane_values,  // [rows, lanes]
                  int64_t rows, int64_t num_features, int64_t plane,
                  T* features) {  // [rows, D]
  constexpr int V = kLanes<T>;
  const int64_t count = num_features - plane * V;
  for (int64_t row = 0; row < rows; ++row) {
    store_up_to(features + row * num_features + plane * V, count, load(plane_values + row * V));
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
