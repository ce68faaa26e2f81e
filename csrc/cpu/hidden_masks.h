// Masks of the non-zero elements of the hidden vectors of a tile of edges.
#pragma once

#include "cpu/masked_product.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

class HiddenMasks {
 public:
  HiddenMasks(int64_t tile_edges, int64_t words, bool by_feature)
      : words_(words),
        by_feature_(by_feature),
        of_edges_(tile_edges * words),
        of_features_(by_feature ? round_up(tile_edges, kMaskBits) * words : 0) {}

  // Bit i of word w: feature w * kMaskBits + i of the edge.
  uint32_t* of_edge(int64_t edge) const { return of_edges_.get() + edge * words_; }
  // Bit i: edge group * kMaskBits + i of the tile.
  uint32_t* of_features(int64_t group) const {
    return of_features_.get() + group * words_ * kMaskBits;
  }

  // The masks of `count` edges from `first` on, a multiple of kMaskBits.
  template <typename T>
  void compute(int64_t first, int64_t count,
               const T* hidden,  // [count, words * kMaskBits], rows `row` apart
               int64_t row) {
    constexpr int V = kLanes<T>;
    typedef uint32_t EdgeBits __attribute__((vector_size(V * sizeof(uint32_t))));
    std::fill_n(of_edge(first), count * words_, 0);
    for (int64_t i = 0; i < count; ++i) {
      uint32_t* of_this = of_edge(first + i);
      uint32_t* of_group = of_features((first + i) / kMaskBits);
      const int32_t edge_bit = static_cast<int32_t>(uint32_t(1) << i % kMaskBits);
      if (by_feature_ && i % kMaskBits == 0) std::fill_n(of_group, words_ * kMaskBits, 0);
      for (int64_t d = 0; d < words_ * kMaskBits; d += V) {
        const Vec<T> h = load(hidden + i * row + d);
        of_this[d / kMaskBits] |= nonzero_bits<T>(h) << d % kMaskBits;
        if (!by_feature_) continue;
        EdgeBits bits;
        std::memcpy(&bits, of_group + d, sizeof(bits));
        bits |= __builtin_convertvector((h != 0) & edge_bit, EdgeBits);
        std::memcpy(of_group + d, &bits, sizeof(bits));
      }
    }
  }

 private:
  int64_t words_;
  bool by_feature_;
  Buffer<uint32_t> of_edges_;     // [tile, words]
  Buffer<uint32_t> of_features_;  // [tile / kMaskBits, words * kMaskBits]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
