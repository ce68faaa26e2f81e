// Matrix products that skip the zeros of a rectified matrix.
//
// About half of the hidden vectors' elements, relu(source + target), are zero. Each row of 32 of
// them carries a mask of its non-zero elements, and a product visits the set bits alone: one
// multiply-add per vector of the other operand, which it reads from the L1 cache. A register block
// that visits everything reuses its loads, but no processor multiplies faster than it loads.
#pragma once

#include "cpu/planes.h"
#include "cpu/words.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

constexpr int64_t kMaskBits = 32;

// Columns are worked on in panels of at most so many vectors: kMaskBits rows of one fit in L1, and
// one row fits in the registers beside a few sums.
constexpr int kPanelVectors = 14;

// A row-major matrix [rows, columns] in panels of near-equal widths: [panel][rows, width].
template <typename T>
class Panels {
 public:
  Panels(int64_t rows, int64_t columns)
      : rows_(rows),
        vectors_(ceil_div(columns, kLanes<T>)),
        count_(ceil_div(vectors_, kPanelVectors)),
        data_(rows * vectors_ * kLanes<T>) {}

  int64_t count() const { return count_; }
  int64_t vectors(int64_t panel) const { return start(panel + 1) - start(panel); }
  int64_t width(int64_t panel) const { return vectors(panel) * kLanes<T>; }
  int64_t column(int64_t panel) const { return start(panel) * kLanes<T>; }
  int64_t columns() const { return vectors_ * kLanes<T>; }
  T* at(int64_t panel, int64_t row) const {
    return data_.get() + column(panel) * rows_ + row * width(panel);
  }
  int64_t panel_of(int64_t column) const {
    return ((column / kLanes<T> + 1) * count_ - 1) / vectors_;
  }

 private:
  int64_t start(int64_t panel) const { return vectors_ * panel / count_; }

  int64_t rows_, vectors_, count_;
  Buffer<T> data_;
};

// Calls function(std::integral_constant<int, vectors>), for 1 <= vectors <= kPanelVectors.
template <typename Function>
inline void with_panel_vectors(int64_t vectors, Function&& function) {
#define DEEPCRF_VECTORS(n) \
  case n: function(std::integral_constant<int, n>{}); break;
  switch (vectors) {
    // clang-format off
    DEEPCRF_VECTORS(1) DEEPCRF_VECTORS(2) DEEPCRF_VECTORS(3) DEEPCRF_VECTORS(4)
    DEEPCRF_VECTORS(5) DEEPCRF_VECTORS(6) DEEPCRF_VECTORS(7) DEEPCRF_VECTORS(8)
    DEEPCRF_VECTORS(9) DEEPCRF_VECTORS(10) DEEPCRF_VECTORS(11) DEEPCRF_VECTORS(12)
    DEEPCRF_VECTORS(13) DEEPCRF_VECTORS(14)
    // clang-format on
  }
#undef DEEPCRF_VECTORS
}

// C[r, :] += sum of A[r, i] * B[i, :] over the set bits i of mask r.
template <int Vectors, typename Word>
void masked_product(int64_t rows,
                    const Word* a,  // (r, i) at a[r * a_row + i * a_step]
                    int64_t a_row, int64_t a_step,
                    const uint32_t* masks,  // [rows], masks_row apart
                    int64_t masks_row,
                    const Word* b,   // [kMaskBits, Vectors * lanes]
                    Sum<Word>* c) {  // [rows, Vectors * lanes]
  constexpr int V = kLanes<Word>;
  for (int64_t r = 0; r < rows; ++r) {
    uint32_t mask = masks[r * masks_row];
    if (mask == 0) continue;
    const Word* a_of_row = a + r * a_row;
    Sum<Word>* c_of_row = c + r * Vectors * V;
    Vec<Sum<Word>> sum[Vectors];
#pragma GCC unroll 16
    for (int n = 0; n < Vectors; ++n) sum[n] = load(c_of_row + n * V);
    do {
      const int i = __builtin_ctz(mask);
      mask &= mask - 1;
      const Vec<Word> scalar = broadcast_word(a_of_row[i * a_step]);
      const Word* row = b + i * (Vectors * V);
#pragma GCC unroll 16
      for (int n = 0; n < Vectors; ++n) sum[n] = multiply_add(sum[n], scalar, load(row + n * V));
    } while (mask != 0);
#pragma GCC unroll 16
    for (int n = 0; n < Vectors; ++n) store(c_of_row + n * V, sum[n]);
  }
}

// C[r, i] = A[r, :] . B[i, :] for the set bits i of mask r. Lanes are yet to be summed: products of
// one panel after another add up in `lane_sums`, which the first of them overwrites.
template <int Vectors, typename Word>
void masked_dots(int64_t rows,
                 const Word* a,          // [rows, Vectors * lanes]
                 const uint32_t* masks,  // [rows], masks_row apart
                 int64_t masks_row,
                 const Word* b,  // [kMaskBits, Vectors * lanes]
                 bool first,
                 Sum<Word>* lane_sums) {  // [rows, kMaskBits, lanes]
  constexpr int V = kLanes<Word>;
  // Sums that hide the latency of the multiply-add; the row takes most of 16 registers.
  constexpr int kChains = std::min(Vectors, kVectorRegisters == 32 ? 4 : 2);
  for (int64_t r = 0; r < rows; ++r) {
    Vec<Word> row[Vectors];
#pragma GCC unroll 16
    for (int n = 0; n < Vectors; ++n) row[n] = load(a + (r * Vectors + n) * V);
    for (uint32_t mask = masks[r * masks_row]; mask != 0; mask &= mask - 1) {
      const int i = __builtin_ctz(mask);
      const Word* other = b + i * (Vectors * V);
      Sum<Word>* out = lane_sums + (r * kMaskBits + i) * V;
      Vec<Sum<Word>> sum[kChains] = {};
#pragma GCC unroll 16
      for (int n = 0; n < Vectors; ++n) {
        sum[n % kChains] = multiply_add(sum[n % kChains], row[n], load(other + n * V));
      }
      if (!first) sum[0] += load(out);
#pragma GCC unroll 4
      for (int n = 1; n < kChains; ++n) sum[0] += sum[n];
      store(out, sum[0]);
    }
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
