#include "cpu/dispatch.h"

#include <cstdlib>

#include "core/checks.h"

namespace deepcrf::cpu {

namespace {

// What the machine runs, weakest first; position = value of Isa.
const std::vector<Isa>& supported() {
  static const std::vector<Isa> found = [] {
    std::vector<Isa> isas = {Isa::portable};
#ifdef DEEPCRF_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return isas;
    isas.push_back(Isa::avx2);
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
      return isas;
    }
    isas.push_back(Isa::avx512);
    if (__builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::avx512_bf16);
#endif
    return isas;
  }();
  return found;
}

Isa choose_isa() {
  const char* wanted = std::getenv("DEEPCRF_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return supported().back();
  std::string names;
  for (Isa isa : supported()) {
    if (wanted == std::string(isa_name(isa))) return isa;
    names += names.empty() ? isa_name(isa) : concatenate(", ", isa_name(isa));
  }
  throw Error(concatenate("DEEPCRF_CPU_ISA must be one that this machine and build support (",
                          names, "), got '", wanted, "'"));
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "portable";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512_bf16: return "avx512_bf16";
  }
  return "unknown";
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (Isa isa : supported()) names.emplace_back(isa_name(isa));
  return names;
}

Isa active_isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

}  // namespace deepcrf::cpu
