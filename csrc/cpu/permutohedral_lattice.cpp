// Building a permutohedral lattice.
//
// Positions are computed in float32 and, by -ffp-contract=off (csrc/sources.cmake), in the order
// written here and no other: whether a lattice point exists at all depends on the last bit of a
// position on the border of a simplex, and every instruction set must come to the same lattice.
#include <cfloat>
#include <cmath>
#include <exception>

#include "core/lattice_embedding.h"
#include "cpu/dispatch.h"
#include "cpu/key_table.h"
#include "cpu/planes.h"
#include "ops/permutohedral.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

namespace {

constexpr int V = kLanes<float>;

// The embedding of d-dimensional features into the hyperplane of the lattice.
struct Embedding {
  int64_t num_dims;
  std::vector<float> scale;  // [d]

  explicit Embedding(int64_t d) : num_dims(d) {
    for (int64_t i = 0; i < d; ++i) scale.push_back(lattice_embedding_scale(i, d));
  }
};

struct Range {
  float low;
  float high;
};

// The range of every feature.
std::vector<Range> feature_ranges(const float* features, int64_t N, int64_t d, int num_threads) {
  std::vector<Range> ranges;
  for (int64_t i = 0; i < d; ++i) {
    const float* feature = features + i * N;
    float low = FLT_MAX, high = -FLT_MAX;
    int64_t bad = 0;
#pragma omp parallel for simd schedule(static) num_threads(num_threads) reduction(min : low) \
    reduction(max : high) reduction(+ : bad)
    for (int64_t n = 0; n < N; ++n) {
      const float value = feature[n];
      low = value < low ? value : low;
      high = value > high ? value : high;
      bad += value - value == 0 ? 0 : 1;
    }
    DEEPCRF_CHECK(bad == 0, "features: got ", bad, " values of dimension ", i,
                  " that are NaN or infinite, must be finite");
    ranges.push_back({low, high});
  }
  return ranges;
}

// A layout that holds every lattice point around features in these ranges, and their neighbours.
KeyLayout key_layout(const Embedding& embedding, const std::vector<Range>& ranges) {
  const int64_t d = embedding.num_dims;
  std::vector<int64_t> low, high;
  double low_sum = 0, high_sum = 0;
  for (int64_t j = d; j >= 0; --j) {
    // elevated[j] = (sum of the scaled features from j on) - j * scaled feature j-1
    double lowest = low_sum, highest = high_sum;
    if (j > 0) {
      const double scale = embedding.scale[j - 1];
      const Range range = ranges[j - 1];
      lowest -= static_cast<double>(j) * scale * range.high;
      highest -= static_cast<double>(j) * scale * range.low;
      low_sum += scale * range.low;
      high_sum += scale * range.high;
    }
    const double largest = std::max(std::abs(lowest), std::abs(highest));
    DEEPCRF_CHECK(largest <= kLargestCoordinate, "features: got values of up to ",
                  largest / static_cast<double>(d + 1),
                  " standard deviations of their kernel, must be at most ",
                  kLargestCoordinate / static_cast<double>(d + 1), ": widen the kernel");
    if (j == d) continue;  // The last coordinate is minus the sum of the others.
    const int64_t margin = 4 * (d + 1);
    low.insert(low.begin(), static_cast<int64_t>(std::floor(lowest)) - margin);
    high.insert(high.begin(), static_cast<int64_t>(std::ceil(highest)) + margin);
  }
  return KeyLayout(low, high);
}

// Where V positions lie: Places[i][lane] for coordinates i = 0..d.
struct Places {
  explicit Places(int64_t d)
      : elevated((d + 1) * V), nearest((d + 1) * V), rank((d + 1) * V), offset((d + 1) * V) {}
  Buffer<float> elevated;
  Buffer<int32_t> nearest;  // the vertex of colour 0
  Buffer<int32_t> rank;     // of the coordinates, by descending distance from that vertex
  Buffer<float> offset;     // that distance / (d + 1)
};

// D is d, or 0 where only the argument says it.
template <int D>
void place(const Embedding& embedding, const float* features, int64_t num_values, int64_t first,
           int64_t count, Places* places) {
  using Float = Vec<float>;
  using Int = IntVec<float>;
  const int d = D > 0 ? D : static_cast<int>(embedding.num_dims);
  float* elevated = places->elevated.get();
  float* nearest = places->offset.get();
  int32_t* rank = places->rank.get();

  Float sum = {};
  for (int j = d; j > 0; --j) {
    const float* from = features + (j - 1) * num_values + first;
    Float feature;
    if (count >= V) {
      feature = load(from);
    } else {
      float lanes[V] = {};
      for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
      feature = load(lanes);
    }
    const Float scaled = feature * embedding.scale[j - 1];
    store(elevated + j * V, sum - static_cast<float>(j) * scaled);
    sum = sum + scaled;
  }
  store(elevated, sum);

  // The nearest vertex of colour 0, coordinate by coordinate: adding the magic number rounds to an
  // integer.
  const float up = static_cast<float>(d + 1);
  const float down = 1.0f / up;
  const Float magic = broadcast(12582912.0f);
  Float excess = {};
  for (int i = 0; i <= d; ++i) {
    const Float rounded = (load(elevated + i * V) * down + magic) - magic;
    store(nearest + i * V, rounded * up);
    excess = excess + rounded;
    store(rank + i * V, Int{});
  }
  for (int i = 0; i < d; ++i) {
    const Float distance = load(elevated + i * V) - load(nearest + i * V);
    Int own = load(rank + i * V);
    for (int j = i + 1; j <= d; ++j) {
      const Int closer = distance < load(elevated + j * V) - load(nearest + j * V);
      own = own - closer;
      store(rank + j * V, load(rank + j * V) + 1 + closer);
    }
    store(rank + i * V, own);
  }

  // A vertex off the plane: move the coordinates that are rounded worst.
  const Int shift = __builtin_convertvector(excess, Int);
  for (int i = 0; i <= d; ++i) {
    const Int moved = load(rank + i * V) + shift;
    const Int raise = moved < 0 ? Int{} + (d + 1) : Int{};
    const Int lower = moved > d ? Int{} + (d + 1) : Int{};
    store(rank + i * V, moved + raise - lower);
    const Float vertex = load(nearest + i * V) + __builtin_convertvector(raise - lower, Float);
    store(places->nearest.get() + i * V, __builtin_convertvector(vertex, Int));
    store(places->offset.get() + i * V, (load(elevated + i * V) - vertex) * down);
  }
}

// Room for a key of Words words, or of any number where that is 0: each holds a coordinate or more.
template <int Words>
constexpr int kMostWords = Words > 0 ? Words : kMaxLatticeDims;

// The lattice points that one block touches, numbered in the order it meets them.
template <int Words>
class BlockBuilder {
 public:
  BlockBuilder(const Embedding& embedding, const KeyLayout& layout)
      : embedding_(embedding), layout_(layout), places_(embedding.num_dims) {
    const int64_t d = embedding.num_dims;
    steps_.assign((d + 1) * layout.words(), 0);
    // One step along an axis adds 1 to every coordinate but its own, which it lowers by d.
    for (int64_t axis = 0; axis <= d; ++axis) {
      for (int64_t i = 0; i < d; ++i) {
        layout.add_step(i == axis ? -d : 1, i, steps_.data() + axis * layout.words());
      }
    }
  }

  const uint64_t* step(int64_t axis) const { return steps_.data() + axis * words(); }

  // Writes vertices and weights of the positions first..first+count-1.
  KeyTable<Words> build(const float* features, int64_t num_values, int64_t first, int64_t count,
                        int16_t* vertices, float* weights) {
    switch (embedding_.num_dims) {
      case 2: return build<2>(features, num_values, first, count, vertices, weights);
      case 3: return build<3>(features, num_values, first, count, vertices, weights);
      case 5: return build<5>(features, num_values, first, count, vertices, weights);
      default: return build<0>(features, num_values, first, count, vertices, weights);
    }
  }

 private:
  int words() const { return Words > 0 ? Words : layout_.words(); }

  // D is d, or 0 where only the embedding says it.
  template <int D>
  KeyTable<Words> build(const float* features, int64_t num_values, int64_t first, int64_t count,
                        int16_t* vertices, float* weights) {
    const int d = D > 0 ? D : static_cast<int>(embedding_.num_dims);
    constexpr int kCorners = D > 0 ? D + 1 : kMaxLatticeDims + 1;
    // By rank: the axis of a coordinate and its offset.
    int32_t axes[kCorners], former_axes[kCorners] = {-1};
    float offsets[kCorners];
    KeyTable<Words> table(words());
    uint64_t origins[kMostWords<Words> * V], key[kMostWords<Words>],
        former_origin[kMostWords<Words>];
    const int16_t* former = nullptr;
    for (int64_t n = first; n < first + count; n += V) {
      const int64_t lanes = std::min<int64_t>(V, first + count - n);
      place<D>(embedding_, features, num_values, n, lanes, &places_);
      std::fill_n(origins, words() * V, 0);
      for (int i = 0; i < d; ++i) {
        layout_.add_all<V>(places_.nearest.get() + i * V, i, origins);
      }
      for (int64_t lane = 0; lane < lanes; ++lane) {
        int16_t* vertex = vertices + (n + lane) * (d + 1);
        for (int i = 0; i <= d; ++i) {
          const int32_t rank = places_.rank.get()[i * V + lane];
          axes[rank] = i;
          offsets[rank] = places_.offset.get()[i * V + lane];
        }
        // Barycentric coordinates (Adams et al., proposition 4.2): differences of sorted offsets.
        float* weight = weights + (n + lane) * (d + 1);
        weight[0] = offsets[d] + (1.0f - offsets[0]);
        for (int r = 1; r <= d; ++r) weight[r] = offsets[d - r] - offsets[d - r + 1];

        for (int w = 0; w < words(); ++w) key[w] = origins[w * V + lane];
        if (former != nullptr && std::equal(key, key + words(), former_origin) &&
            std::equal(axes, axes + d + 1, former_axes)) {
          std::copy_n(former, d + 1, vertex);  // the simplex of the position before
          former = vertex;
          continue;
        }
        former = vertex;
        std::copy_n(key, words(), former_origin);
        std::copy_n(axes, d + 1, former_axes);
        // From the vertex of colour r to that of colour r + 1 is one step along the axis of rank
        // d - r.
        for (int r = 0; r <= d; ++r) {
          vertex[r] = static_cast<int16_t>(table.find_or_insert(key));
          const uint64_t* toward = step(axes[d - r]);
          for (int w = 0; w < words(); ++w) key[w] += toward[w];
        }
      }
    }
    return table;
  }

  const Embedding& embedding_;
  const KeyLayout& layout_;
  Places places_;
  std::vector<uint64_t> steps_;  // [d + 1, words]
};

template <int Words>
void build_lattice(const Embedding& embedding, const KeyLayout& layout, const float* features,
                   int64_t N, int16_t* vertices, float* weights, LatticePoints* points,
                   int num_threads) {
  const int64_t d = embedding.num_dims;
  const int64_t block = lattice_block_size(d);
  const int64_t blocks = ceil_div(N, block);
  const int words = layout.words();

  std::vector<KeyTable<Words>> tables(blocks, KeyTable<Words>(words, 1));
  PerThread<BlockBuilder<Words>> builders(num_threads, embedding, layout);
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int64_t b = 0; b < blocks; ++b) {
    try {
      tables[b] = builders.mine().build(features, N, b * block, std::min(block, N - b * block),
                                        vertices, weights);
    } catch (...) {
#pragma omp critical(deepcrf_lattice_failure)
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);

  // Points are numbered in the order of the blocks, whatever the threads did.
  KeyTable<Words> all(words, 14);
  points->block_offsets.assign(1, 0);
  for (KeyTable<Words>& table : tables) {
    for (int64_t id = 0; id < table.size(); ++id) {
      points->entry_points.push_back(all.find_or_insert(table.key(id)));
    }
    points->block_offsets.push_back(static_cast<int64_t>(points->entry_points.size()));
    table = KeyTable<Words>(words, 1);
  }
  const int64_t M = all.size();
  points->num_points = M;

  points->neighbours.assign((d + 1) * M * 2, static_cast<int32_t>(M));
#pragma omp parallel num_threads(num_threads)
  {
    uint64_t key[kMostWords<Words>] = {};
    for (int64_t axis = 0; axis <= d; ++axis) {
      int32_t* pairs = points->neighbours.data() + axis * M * 2;
      const uint64_t* step = builders.mine().step(axis);
#pragma omp for schedule(static)
      for (int64_t m = 0; m < M; ++m) {
        for (int w = 0; w < words; ++w) key[w] = all.key(m)[w] + step[w];
        const int32_t next = all.find(key);
        if (next < 0) continue;
        pairs[m * 2 + 1] = next;
        pairs[static_cast<int64_t>(next) * 2] = static_cast<int32_t>(m);
      }
    }
  }

  points->point_offsets.assign(M + 1, 0);
  for (int32_t m : points->entry_points) ++points->point_offsets[m + 1];
  for (int64_t m = 0; m < M; ++m) points->point_offsets[m + 1] += points->point_offsets[m];
  std::vector<int64_t> next(points->point_offsets.begin(), points->point_offsets.end() - 1);
  points->point_entries.resize(points->entry_points.size());
  for (size_t e = 0; e < points->entry_points.size(); ++e) {
    points->point_entries[next[points->entry_points[e]]++] = static_cast<int32_t>(e);
  }
}

}  // namespace

void permutohedral_lattice(const float* features, int64_t num_values, int64_t num_dims,
                           int16_t* vertices, float* weights, LatticePoints* points,
                           const ExecutionContext& ctx) {
  const Embedding embedding(num_dims);
  const int64_t blocks = ceil_div(num_values, lattice_block_size(num_dims));
  const int num_threads = static_cast<int>(std::min<int64_t>(ctx.num_threads, blocks));
  const KeyLayout layout =
      key_layout(embedding, feature_ranges(features, num_values, num_dims, num_threads));
  const auto build = [&](auto words) {
    build_lattice<decltype(words)::value>(embedding, layout, features, num_values, vertices,
                                          weights, points, num_threads);
  };
  if (layout.words() == 1) {
    build(std::integral_constant<int, 1>{});
  } else {
    build(std::integral_constant<int, 0>{});
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA

#ifdef DEEPCRF_ISA_PORTABLE
namespace deepcrf::cpu {

DEEPCRF_DECLARE_ISAS(permutohedral_lattice)

void permutohedral_lattice(const float* features, int64_t num_values, int64_t num_dims,
                           int16_t* vertices, float* weights, LatticePoints* points,
                           const ExecutionContext& ctx) {
  DEEPCRF_SELECT_ISA(permutohedral_lattice)
  (features, num_values, num_dims, vertices, weights, points, ctx);
}

}  // namespace deepcrf::cpu
#endif
