#include "cpu/dispatch.h"

#include <cstdlib>

#include "core/checks.h"

#if defined(DEEPCRF_WITH_TILES) && !defined(DEEPCRF_EMULATE_TILES)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace deepcrf::cpu {

namespace {

#if defined(DEEPCRF_EMULATE_TILES)
bool may_use_tiles() { return true; }
#elif defined(DEEPCRF_WITH_TILES)
// Whether the processor has tiles of bfloat16 and the system lets this process use them, which it
// has to be asked for.
bool may_use_tiles() {
  unsigned int a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned int kTileBfloat16 = 1u << 22, kTiles = 1u << 24;
  if ((d & kTileBfloat16) == 0 || (d & kTiles) == 0) return false;
  __get_cpuid(1, &a, &b, &c, &d);
  constexpr unsigned int kSavesStates = 1u << 27;
  if ((c & kSavesStates) == 0) return false;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kTileStates = 3u << 17;
  if ((low & kTileStates) != kTileStates) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// What the machine runs, weakest first.
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
    if (!__builtin_cpu_supports("avx512bf16")) return isas;
    isas.push_back(Isa::avx512_bf16);
#endif
#ifdef DEEPCRF_WITH_TILES
    if (may_use_tiles()) isas.push_back(Isa::amx);
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
  throw Error(concatenate("DEEPCRF_CPU_ISA: got '", wanted,
                          "', must be one that this machine and build support: ", names));
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "portable";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::amx: return "amx";
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
