// The inner loop of the factored messages by matrix tiles (design: "mean field without the K x K
// tables"). For a node,
//   A[c, d] = sum over neighbours q of  coefficients[q, c] * relu(self + other_q)[d]
// is a product of the coefficients with hidden vectors H over pairs of neighbours, 32 features at a
// time, H formed on the way.
#pragma once

#include "core/graph_view.h"
#include "cpu/planes.h"
#include "cpu/tiles.h"
#include "ops/factored_potential.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Features that are formed at a time: two tiles.
constexpr int64_t kTilePlane = 2 * kTileRows;

// Both projections of the nodes, widened, in rows of whole planes.
class TileNodes {
 public:
  TileNodes(const GraphView& graph, const AnyFactoredPotential& potential)
      : num_nodes_(graph.num_nodes),
        potential_(potential),
        planes_(ceil_div(potential.num_features, kTilePlane)),
        row_(planes_ * kTilePlane + kTileRows),  // not a power of two
        source_(num_nodes_ * row_),
        target_(num_nodes_ * row_) {}

  int64_t planes() const { return planes_; }
  int64_t row() const { return row_; }
  const float* source() const { return source_.get(); }  // [N, row]
  const float* target() const { return target_.get(); }  // [N, row]

  // Fills one plane of both. Call for each plane, from any thread, before the rest.
  void pack(int64_t plane) {
    dispatch_tile_dtype(potential_.dtype, [&](auto tag) {
      const auto& potential = potential_.as<decltype(tag)>();
      pack_plane(potential.source, plane, source_.get());
      pack_plane(potential.target, plane, target_.get());
    });
  }

 private:
  template <typename In>
  void pack_plane(const In* features,  // [N, D]
                  int64_t plane,
                  float* rows) {  // [N, row]
    const int64_t D = potential_.num_features;
    for (int64_t node = 0; node < num_nodes_; ++node) {
      for (int64_t d = plane * kTilePlane; d < (plane + 1) * kTilePlane; d += kTileRows) {
        const int64_t left = std::max<int64_t>(D - d, 0);
        store(rows + node * row_ + d, load_up_to(features + node * D + std::min(d, D), left));
      }
    }
  }

  int64_t num_nodes_;
  AnyFactoredPotential potential_;
  int64_t planes_, row_;
  Buffer<float> source_, target_;
};

// The neighbours of a node in one direction, and the projections of both ends from some plane on.
struct TileNeighbours {
  const int32_t* nodes;  // [count]
  int64_t count;
  const float* self;
  const float* other;  // [N], rows `row` apart
  int64_t row;
};

// Forms A of a node; one per thread.
template <int Summands>
class TileAccumulator {
 public:
  TileAccumulator(int64_t num_coefficients, int64_t most_planes)
      : num_coefficients_(num_coefficients),
        tiles_(ceil_div(num_coefficients, kTileRows)),
        coefficients_(Summands * coefficient_words()),
        hidden_(Summands * kHiddenWords),
        sums_(most_planes * plane_size()) {}

  // Calls finish(plane, A) for some planes, A of 32 features in rows of kTilePlane.
  template <typename Finish>
  void run(const TileNeighbours& neighbours, int64_t planes,
           const float* coefficients,  // [N, num_coefficients]
           Finish&& finish) {
    const int64_t steps = ceil_div(neighbours.count, kTileDepth);
    if (steps == 0) {
      std::fill_n(sums_.get(), plane_size(), 0.0f);
      for (int64_t plane = 0; plane < planes; ++plane) finish(plane, sums_.get());
    }
    for (int64_t part = 0; part < steps; part += kPartSteps) {
      const int64_t part_steps = std::min(kPartSteps, steps - part);
      const int32_t* nodes = neighbours.nodes + part * kTileDepth;
      const int64_t count = neighbours.count - part * kTileDepth;
      pack_coefficients(nodes, count, part_steps, coefficients);
      for (int64_t plane = 0; plane < planes; ++plane) {
        form_hidden(nodes, count, part_steps, neighbours.self + plane * kTilePlane,
                    neighbours.other + plane * kTilePlane, neighbours.row);
        float* sums = sums_.get() + plane * plane_size();
        multiply_tiles_into<Summands>(
            tiles_, kTilePlane / kTileRows, part_steps,
            {coefficients_.get(), kPartSteps * kTileElements, kTileElements, kTileRows,
             coefficient_words()},
            {hidden_.get(), kTileElements, 2 * kTileElements, kTileRows, kHiddenWords}, sums,
            kTilePlane, part == 0);
        if (part + part_steps == steps) finish(plane, std::as_const(sums));
      }
    }
  }

 private:
  static constexpr int64_t kPartSteps = 16;  // neighbours whose hidden vectors stay in L1, by 32
  static constexpr int64_t kHiddenWords = 2 * kPartSteps * kTileElements;

  int64_t coefficient_words() const { return tiles_ * kPartSteps * kTileElements; }
  int64_t plane_size() const { return tiles_ * kTileRows * kTilePlane; }

  // Coefficients as tiles [coefficient tile][step][16 coefficients, 16 pairs of neighbours]; zeros
  // past the last.
  void pack_coefficients(const int32_t* nodes, int64_t count, int64_t steps,
                         const float* coefficients) {
    const auto of_neighbour = [&](int64_t i, int64_t c) {
      const float* row = coefficients + nodes[std::min(i, count - 1)] * num_coefficients_;
      return i < count ? load_up_to(row + c, num_coefficients_ - c) : Vec<float>{};
    };
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      for (int64_t step = 0; step < steps; ++step) {
        Vec<int32_t> pairs[Summands][kTileRows];
        for (int64_t i = 0; i < kTileRows; ++i) {
          const int64_t edge = step * kTileDepth + 2 * i;
          split_pairs<Summands>(of_neighbour(edge, tile * kTileRows),
                                of_neighbour(edge + 1, tile * kTileRows),
                                [&](int summand, Vec<int32_t> both) { pairs[summand][i] = both; });
        }
        BfloatPair* to = coefficients_.get() + (tile * kPartSteps + step) * kTileElements;
        for (auto& words : pairs) {
          transpose_words(words);
          for (int64_t i = 0; i < kTileRows; ++i) store(to + i * kTileRows, words[i]);
          to += coefficient_words();
        }
      }
    }
  }

  // Hidden vectors as tiles [step][feature tile][16 pairs of neighbours, 16 features]. Past the
  // last neighbour its own stand again, for coefficients of zero.
  void form_hidden(const int32_t* nodes, int64_t count, int64_t steps, const float* self,
                   const float* other, int64_t row) {
    const Vec<float> low = load(self), high = load(self + kTileRows);
    for (int64_t i = 0; i < steps * kTileRows; ++i) {
      const float* first = other + nodes[std::min(2 * i, count - 1)] * row;
      const float* second = other + nodes[std::min(2 * i + 1, count - 1)] * row;
      BfloatPair* to =
          hidden_.get() + i / kTileRows * 2 * kTileElements + i % kTileRows * kTileRows;
      split_pairs<Summands>(
          relu<float>(low + load(first)), relu<float>(low + load(second)),
          [&](int summand, Vec<int32_t> both) { store(to + summand * kHiddenWords, both); });
      to += kTileElements;
      split_pairs<Summands>(
          relu<float>(high + load(first + kTileRows)), relu<float>(high + load(second + kTileRows)),
          [&](int summand, Vec<int32_t> both) { store(to + summand * kHiddenWords, both); });
    }
  }

  int64_t num_coefficients_, tiles_;
  Buffer<BfloatPair> coefficients_;  // [summand], see pack_coefficients()
  Buffer<BfloatPair> hidden_;        // [summand], see form_hidden()
  Buffer<float> sums_;               // [plane, tiles * 16, kTilePlane]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
