// Choice of the CPU instruction set at run time.
//
// A source in DEEPCRF_CPU_VECTOR_SOURCES is compiled once per instruction set, each time with
// DEEPCRF_ISA set to the name of a namespace. It defines
//
//   namespace deepcrf::cpu::DEEPCRF_ISA { void op(...) { ... } }
//
// and closes with the launcher itself, which the portable pass alone keeps:
//
//   #ifdef DEEPCRF_ISA_PORTABLE
//   namespace deepcrf::cpu {
//   DEEPCRF_DECLARE_ISAS(op)
//   void op(...) { DEEPCRF_SELECT_ISA(op)(...); }
//   }
//   #endif
#pragma once

#include <string>
#include <vector>

#include "ops/factored_potential.h"

namespace deepcrf::cpu {

// amx is avx512_bf16 with matrix tiles for products of bfloat16.
enum class Isa { portable, avx2, avx512, avx512_bf16, amx };

const char* isa_name(Isa isa);

// What this build holds and this machine runs, weakest first.
std::vector<std::string> supported_isas();

// The strongest supported one, or what the environment variable DEEPCRF_CPU_ISA names. Chosen at
// the first call; throws Error where DEEPCRF_CPU_ISA names none that is supported.
Isa active_isa();

#ifdef DEEPCRF_X86

#define DEEPCRF_DECLARE_ISAS(function) \
  namespace portable {                 \
  decltype(cpu::function) function;    \
  }                                    \
  namespace avx2 {                     \
  decltype(cpu::function) function;    \
  }                                    \
  namespace avx512 {                   \
  decltype(cpu::function) function;    \
  }                                    \
  namespace avx512_bf16 {              \
  decltype(cpu::function) function;    \
  }

template <class Function>
Function* select_isa(Function* portable, Function* avx2, Function* avx512, Function* avx512_bf16) {
  switch (active_isa()) {
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512_bf16:
    case Isa::amx: return avx512_bf16;
    default: return portable;
  }
}

#define DEEPCRF_SELECT_ISA(function)                                               \
  ::deepcrf::cpu::select_isa(portable::function, avx2::function, avx512::function, \
                             avx512_bf16::function)

#else

#define DEEPCRF_DECLARE_ISAS(function) \
  namespace portable {                 \
  decltype(cpu::function) function;    \
  }
#define DEEPCRF_SELECT_ISA(function) portable::function

#endif

// The number of bfloat16 that stand for an operand of a product by matrix tiles, as their sum; 0
// where tiles are not to multiply it. Of few labels, the three products of sums of two take as long
// as one of float32.
inline int tile_summands(const AnyFactoredPotential& potential, MatmulPrecision precision) {
  constexpr int64_t kFewLabels = 7;
  if (potential.dtype == DType::float64 || precision == MatmulPrecision::highest) return 0;
  if (precision == MatmulPrecision::medium) return 1;
  return potential.dtype == DType::float32 && potential.num_labels <= kFewLabels ? 0 : 2;
}

// Sources in DEEPCRF_CPU_TILE_SOURCES define the same in namespace amx, for potentials that have
// tile_summands().
#ifdef DEEPCRF_WITH_TILES
#define DEEPCRF_DECLARE_TILES(function) \
  namespace amx {                       \
  decltype(cpu::function) function;     \
  }
#define DEEPCRF_SELECT_TILES(summands, function)                              \
  ((summands) > 0 && ::deepcrf::cpu::active_isa() == Isa::amx ? amx::function \
                                                              : DEEPCRF_SELECT_ISA(function))
#else
#define DEEPCRF_DECLARE_TILES(function)
#define DEEPCRF_SELECT_TILES(summands, function) DEEPCRF_SELECT_ISA(function)
#endif

}  // namespace deepcrf::cpu
