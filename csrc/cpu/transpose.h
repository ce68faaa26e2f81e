// Square blocks transposed in vector registers.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace deepcrf::cpu::DEEPCRF_ISA {

template <typename T, int Lanes>
struct RowVector {
  typedef T type __attribute__((vector_size(sizeof(T) * Lanes)));
};

// Swaps the lanes of a with bit Width set and those of b without it.
template <int Width, typename Vector, int... Lane>
inline __attribute__((always_inline)) void swap_lanes(Vector* a, Vector* b,
                                                      std::integer_sequence<int, Lane...>) {
  constexpr int V = sizeof...(Lane);
#if defined(__clang__)
  const Vector low = __builtin_shufflevector(*a, *b, (Lane & Width ? V + Lane - Width : Lane)...);
  const Vector high = __builtin_shufflevector(*a, *b, (Lane & Width ? V + Lane : Lane + Width)...);
#else
  using T = std::remove_reference_t<decltype((*a)[0])>;
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  using Mask = typename RowVector<Index, V>::type;
  const Vector low = __builtin_shuffle(*a, *b, Mask{(Lane & Width ? V + Lane - Width : Lane)...});
  const Vector high = __builtin_shuffle(*a, *b, Mask{(Lane & Width ? V + Lane : Lane + Width)...});
#endif
  *a = low;
  *b = high;
}

// Transposes V vectors of V lanes.
template <int V, int Width = V / 2, typename Vector>
inline __attribute__((always_inline)) void transpose(Vector* vectors) {
  if constexpr (Width > 0) {
    constexpr auto lanes = std::make_integer_sequence<int, V>{};
#pragma GCC unroll 16
    for (int i = 0; i < V; ++i) {
      if ((i & Width) == 0) swap_lanes<Width>(vectors + i, vectors + i + Width, lanes);
    }
    transpose<V, Width / 2>(vectors);
  }
}

}  // namespace deepcrf::cpu::DEEPCRF_ISA
