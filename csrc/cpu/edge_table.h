// The table of one edge as kernels work on it.
#pragma once

#include <type_traits>

#include "core/dtypes.h"
#include "cpu/planes.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// K * K values of type In: 16-bit ones are widened, or rounded, an edge at a time; one per thread.
template <typename In>
class EdgeTable {
 public:
  using T = Accumulator<In>;

  explicit EdgeTable(int64_t pairs) : pairs_(pairs), wide_(kWidens ? pairs : 0) {}

  const T* read(const In* table) {
    if constexpr (!kWidens) {
      return table;
    } else {
      for (int64_t i = 0; i < pairs_; i += kLanes<T>) {
        store_up_to(wide_.get() + i, pairs_ - i, load_up_to(table + i, pairs_ - i));
      }
      return wide_.get();
    }
  }

  // Calls form(T*), which writes all values.
  template <typename Form>
  void write(In* table, const Form& form) {
    if constexpr (!kWidens) {
      form(table);
    } else {
      form(wide_.get());
      for (int64_t i = 0; i < pairs_; i += kLanes<T>) {
        store_up_to(table + i, pairs_ - i, load_up_to(wide_.get() + i, pairs_ - i));
      }
    }
  }

 private:
  static constexpr bool kWidens = !std::is_same_v<In, T>;

  int64_t pairs_;
  Buffer<T> wide_;  // [K, K]
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
