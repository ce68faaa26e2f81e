// What the tensor cores multiply, by the type of their products: bfloat16 and float16, float32 by
// TensorFloat32 (tf32), or by three products of it (tf32x3). A product is of 16 features by 8
// columns, labels or edges.
//
// As the features of a product may be any, lane g * 4 + t takes kVector consecutive ones of a row,
// 16 bytes: its features 2p and 2p + 1 are rows g and g + 8 of product p. So it forms hidden
// vectors, of the neighbours that are its columns of the operand, in the very registers that
// products read.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/mma.cuh"
#include "cuda/tf32.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warps.cuh"

namespace deepcrf::cuda {

// Of rows of halves: two consecutive columns or rows share a register, a product sums over 16.
template <class T>
struct HalfFragments {
  using Element = T;  // of what hidden vectors are multiplied by
  static constexpr int kVector = 8;
  static constexpr int kProducts = kVector / 2;
  static constexpr int kLabelTiles = 2;  // of 8, that a product over labels sums over

  // This lane's features of a row, in pairs.
  struct alignas(16) Features {
    uint32_t pairs[4];
  };
  // What this lane reads of the coefficients of an edge, in pairs.
  template <int kSlots>
  struct alignas(2 * kSlots) Coefficients {
    uint32_t pairs[kSlots / 2];
  };
  // That of label `group` of a tile.
  template <int kSlots>
  __device__ static float coefficient(const Coefficients<kSlots>& of_edge, int tile) {
    T half;
    half.bits = static_cast<uint16_t>(of_edge.pairs[tile / 2] >> tile % 2 * 16);
    return half;
  }
  struct FragmentA {  // the operand of features, [16, 16]
    uint32_t words[4];
  };
  struct FragmentB {  // that of columns, [16, 8]
    uint32_t words[2];
  };

  __device__ static void multiply(float (&sums)[4], const FragmentA& a, const FragmentB& b) {
    mma_m16n8k16<T>(sums, a.words, b.words);
  }

  // Features of a row, zeros from `valid` on; with kVectorised all are there.
  template <bool kVectorised>
  __device__ static Features load(const T* features, int64_t valid) {
    Features out;
    if constexpr (kVectorised) {
      out = *reinterpret_cast<const Features*>(features);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out.pairs[i] = pair(2 * i < valid ? features[2 * i].bits : 0,
                            2 * i + 1 < valid ? features[2 * i + 1].bits : 0);
      }
    }
    return out;
  }

  // relu(a + b), the sum rounded; keeps NaN.
  __device__ static Features hidden(const Features& a, const Features& b) {
    Features out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out.pairs[i] = pair_bits(__hmax2_nan(
          __hadd2(pair_of_bits<T>(a.pairs[i]), pair_of_bits<T>(b.pairs[i])), pair_of_bits<T>(0)));
    }
    return out;
  }

  // Where a hidden vector is positive, or NaN.
  struct Positive {
    uint32_t pairs[4];
    __device__ bool operator[](int feature) const {
      return pairs[feature / 2] & (feature % 2 == 0 ? 0x7fffu : 0x7fff0000u);
    }
  };
  // That of an edge; nowhere where not `valid`.
  __device__ static Positive positive(const Features& a, const Features& b, bool valid) {
    const Features sum = hidden(a, b);
    Positive out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.pairs[i] = valid ? sum.pairs[i] : 0;
    return out;
  }

  // Values of this lane's features, rounded.
  __device__ static uint4 packed(const float (&values)[kVector]) {
    return {pack_pair<T>(values[0], values[1]), pack_pair<T>(values[2], values[3]),
            pack_pair<T>(values[4], values[5]), pack_pair<T>(values[6], values[7])};
  }

  // Which of 16 edges are this lane's columns.
  __device__ static int edge(int i) { return lane_index() % 4 * 2 + i % 2 + i / 2 * 8; }

  // sums[product][tile] += hidden vectors of 16 edges, four of this lane, times their coefficients
  // of label `group` of every tile.
  template <int kTiles, int kSlots>
  __device__ static void add(float (&sums)[kProducts][kTiles][4], const Features (&hidden)[4],
                             const Coefficients<kSlots> (&coefficients)[4]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const FragmentB b = {
          of_tile(coefficients[0].pairs[tile / 2], coefficients[1].pairs[tile / 2], tile),
          of_tile(coefficients[2].pairs[tile / 2], coefficients[3].pairs[tile / 2], tile)};
#pragma unroll
      for (int p = 0; p < kProducts; ++p) {
        const FragmentA a = {lower(hidden[0].pairs[p], hidden[1].pairs[p]),
                             upper(hidden[0].pairs[p], hidden[1].pairs[p]),
                             lower(hidden[2].pairs[p], hidden[3].pairs[p]),
                             upper(hidden[2].pairs[p], hidden[3].pairs[p])};
        multiply(sums[p][tile], a, b);
      }
    }
  }

  // sums += products over this lane's features of rows g and g + 8 with those of column g.
  __device__ static void add_row(float (&sums)[4], const uint4& row, const uint4& row_8,
                                 const Features& column) {
    multiply(sums, {row.x, row_8.x, row.y, row_8.y}, {column.pairs[0], column.pairs[1]});
    multiply(sums, {row.z, row_8.z, row.w, row_8.w}, {column.pairs[2], column.pairs[3]});
  }

  // Loads the rows of labels 2t and 2t + 1 of a tile into the a operands over labels.
  template <bool kVectorised>
  __device__ static void load_labels(FragmentA (&a)[kProducts], int tile, const T* (&rows)[2],
                                     const int64_t (&valid)[2]) {
    Features first = {}, second = {};
    if (valid[0] > 0) first = load<kVectorised>(rows[0], valid[0]);
    if (valid[1] > 0) second = load<kVectorised>(rows[1], valid[1]);
#pragma unroll
    for (int p = 0; p < kProducts; ++p) {
      a[p].words[tile % 2 * 2] = lower(first.pairs[p], second.pairs[p]);
      a[p].words[tile % 2 * 2 + 1] = upper(first.pairs[p], second.pairs[p]);
    }
  }
  // The b operand over labels 2t and 2t + 1 of the tiles from `tile` on, of edge g.
  template <int kSlots>
  __device__ static FragmentB labels(const Coefficients<kSlots> (&coefficients)[2], int tile) {
    const uint32_t first = coefficients[0].pairs[tile / 2];
    const uint32_t second = coefficients[1].pairs[tile / 2];
    return {lower(first, second), upper(first, second)};
  }

 private:
  __device__ static uint32_t pair(uint16_t low, uint16_t high) {
    return low | static_cast<uint32_t>(high) << 16;
  }
  // The lower, and the upper, halves of two pairs.
  __device__ static uint32_t lower(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
  __device__ static uint32_t upper(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }
  __device__ static uint32_t of_tile(uint32_t a, uint32_t b, int tile) {
    return tile % 2 == 0 ? lower(a, b) : upper(a, b);
  }
};

// Of rows of floats, or of what is widened to them, by products of T, tf32 or tf32x3: a register
// holds one value, a product sums over 8. Three products are of the upper bits of each operand and
// of what these leave, cut as well: a b = (a1 + a2) (b1 + b2) but for a2 b2 and what was cut, each
// below 2^-20 of it.
template <class T>
struct Tf32Fragments {
  using Element = T;
  static constexpr int kVector = 4;
  static constexpr int kProducts = kVector / 2;
  static constexpr int kLabelTiles = 1;

  struct Features {
    float values[4];
  };
  template <int kSlots>
  struct alignas(16) Coefficients {
    T values[kSlots];
  };
  template <int kSlots>
  __device__ static float coefficient(const Coefficients<kSlots>& of_edge, int tile) {
    return of_edge.values[tile];
  }
  struct FragmentA {
    uint32_t words[kTerms<T>][4];
  };
  struct FragmentB {
    uint32_t words[kTerms<T>][2];
  };

  __device__ static void multiply(float (&sums)[4], const FragmentA& a, const FragmentB& b) {
    if constexpr (kTerms<T> == 2) {  // the least first
      mma_m16n8k8_tf32(sums, a.words[1], b.words[0]);
      mma_m16n8k8_tf32(sums, a.words[0], b.words[1]);
    }
    mma_m16n8k8_tf32(sums, a.words[0], b.words[0]);
  }

  template <bool kVectorised, class Value>
  __device__ static Features load(const Value* features, int64_t valid) {
    Features out;
    load_values(features, valid, kVectorised, out.values);
    return out;
  }

  __device__ static Features hidden(const Features& a, const Features& b) {
    Features out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.values[i] = relu(a.values[i] + b.values[i]);
    return out;
  }

  struct Positive {
    float sums[4];
    float bound;
    __device__ bool operator[](int feature) const { return sums[feature] > bound; }
  };
  __device__ static Positive positive(const Features& a, const Features& b, bool valid) {
    Positive out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.sums[i] = a.values[i] + b.values[i];
    out.bound = valid ? 0 : INFINITY;
    return out;
  }

  __device__ static uint4 packed(const float (&values)[kVector]) {
    return {__float_as_uint(T(values[0])), __float_as_uint(T(values[1])),
            __float_as_uint(T(values[2])), __float_as_uint(T(values[3]))};
  }

  __device__ static int edge(int i) { return lane_index() % 4 + i * 4; }

  template <int kTiles, int kSlots>
  __device__ static void add(float (&sums)[kProducts][kTiles][4], const Features (&hidden)[4],
                             const Coefficients<kSlots> (&coefficients)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {  // 8 edges
      FragmentA a[kProducts];
#pragma unroll
      for (int p = 0; p < kProducts; ++p) {
        set(a[p].words, 0, T(hidden[i].values[2 * p]));
        set(a[p].words, 1, T(hidden[i].values[2 * p + 1]));
        set(a[p].words, 2, T(hidden[i + 1].values[2 * p]));
        set(a[p].words, 3, T(hidden[i + 1].values[2 * p + 1]));
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        FragmentB b;
        set(b.words, 0, coefficients[i].values[tile]);
        set(b.words, 1, coefficients[i + 1].values[tile]);
#pragma unroll
        for (int p = 0; p < kProducts; ++p) add_product(sums[p][tile], a[p], b);
      }
    }
  }

  __device__ static void add_row(float (&sums)[4], const uint4& row, const uint4& row_8,
                                 const Features& column) {
    const uint32_t rows[2][4] = {{row.x, row_8.x, row.y, row_8.y},
                                 {row.z, row_8.z, row.w, row_8.w}};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      FragmentA a;
      FragmentB b;
#pragma unroll
      for (int i = 0; i < 4; ++i) set(a.words, i, stored(rows[half][i]));
#pragma unroll
      for (int i = 0; i < 2; ++i) set(b.words, i, T(column.values[2 * half + i]));
      add_product(sums, a, b);
    }
  }

  // Two features at a time, so that they lie in consecutive registers, as products need.
  template <bool kVectorised>
  __device__ static void load_labels(FragmentA (&a)[kProducts], int, const float* (&rows)[2],
                                     const int64_t (&valid)[2]) {
#pragma unroll
    for (int p = 0; p < kProducts; ++p) {
#pragma unroll
      for (int label = 0; label < 2; ++label) {
        float values[2];
        load_values(rows[label] + 2 * p, valid[label] - 2 * p, kVectorised && valid[label] > 0,
                    values);
        set(a[p].words, 2 * label, T(values[0]));
        set(a[p].words, 2 * label + 1, T(values[1]));
      }
    }
  }
  template <int kSlots>
  __device__ static FragmentB labels(const Coefficients<kSlots> (&coefficients)[2], int tile) {
    FragmentB b;
    set(b.words, 0, coefficients[0].values[tile]);
    set(b.words, 1, coefficients[1].values[tile]);
    return b;
  }

 private:
  // Tensor cores cut what they add, which over many steps would be more than three products leave
  // out: these start from zero, and are added in float32.
  __device__ static void add_product(float (&sums)[4], const FragmentA& a, const FragmentB& b) {
    if constexpr (kTerms<T> == 1) {
      multiply(sums, a, b);
    } else {
      float step[4] = {};
      multiply(step, a, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += step[i];
    }
  }

  __device__ static T stored(uint32_t bits) {
    T value;
    value.value = __uint_as_float(bits);
    return value;
  }

  // Sets register i of the terms of an operand.
  template <int kRegisters>
  __device__ static void set(uint32_t (&words)[kTerms<T>][kRegisters], int i, T value) {
    if constexpr (kTerms<T> == 2) {
      // The upper bits: rounded ones would take five instructions for one.
      constexpr uint32_t kUpper = ~0x1fffu;
      words[0][i] = __float_as_uint(value) & kUpper;
      words[1][i] = __float_as_uint(value - __uint_as_float(words[0][i])) & kUpper;
    } else {
      words[0][i] = __float_as_uint(value);
    }
  }
};

template <class T>
using Fragments = std::conditional_t<sizeof(T) == 2, HalfFragments<T>, Tf32Fragments<T>>;

}  // namespace deepcrf::cuda
