// Shuffles, votes, reductions and tensor-core instructions: what the last lane to arrive computes
// for all.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_on_host/mma.h"
#include "cuda_runtime.h"

namespace cuda_on_host {

namespace {

struct ShufflePayload {
  std::uint64_t value;
  unsigned source;
  std::uint64_t result;
};

void resolve_shuffle(void* const* payloads) {
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    auto* own = static_cast<ShufflePayload*>(payloads[lane]);
    if (own == nullptr) continue;
    const auto* source = static_cast<const ShufflePayload*>(payloads[own->source]);
    // A lane that takes no part has no defined value: NaN, or -1.
    own->result = source == nullptr ? ~std::uint64_t{0} : source->value;
  }
}

struct NumberPayload {
  std::uint64_t value;
  Reduction kind;
  std::uint64_t result;
};

void resolve_vote(void* const* payloads) {
  std::uint64_t votes = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto* own = static_cast<const NumberPayload*>(payloads[lane]);
    if (own != nullptr && own->value != 0) votes |= std::uint64_t{1} << lane;
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (payloads[lane] != nullptr) static_cast<NumberPayload*>(payloads[lane])->result = votes;
  }
}

void resolve_match(void* const* payloads) {
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    auto* own = static_cast<NumberPayload*>(payloads[lane]);
    if (own == nullptr) continue;
    own->result = 0;
    for (unsigned other = 0; other < kWarpSize; ++other) {
      const auto* candidate = static_cast<const NumberPayload*>(payloads[other]);
      if (candidate != nullptr && candidate->value == own->value)
        own->result |= std::uint64_t{1} << other;
    }
  }
}

std::int64_t combine(Reduction kind, std::int64_t a, std::int64_t b) {
  switch (kind) {
    case Reduction::add: return a + b;
    case Reduction::min: return a < b ? a : b;
    case Reduction::max: return a > b ? a : b;
    case Reduction::bit_and: return a & b;
    case Reduction::bit_or: return a | b;
    case Reduction::bit_xor: return a ^ b;
  }
  return 0;
}

void resolve_reduce(void* const* payloads) {
  bool first = true;
  std::int64_t total = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto* own = static_cast<const NumberPayload*>(payloads[lane]);
    if (own == nullptr) continue;
    const auto value = static_cast<std::int64_t>(own->value);
    total = first ? value : combine(own->kind, total, value);
    first = false;
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (payloads[lane] == nullptr) continue;
    static_cast<NumberPayload*>(payloads[lane])->result = static_cast<std::uint64_t>(total);
  }
}

void require_all_lanes(void* const* payloads, const char* name) {
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (payloads[lane] == nullptr) {
      fail(std::string(name) + " needs all 32 lanes: lane " + std::to_string(lane) + " is missing");
    }
  }
}

float to_float(Half type, std::uint32_t pair, int half) {
  const auto bits = static_cast<unsigned short>(half == 0 ? pair & 0xffffu : pair >> 16);
  return type == Half::bfloat16 ? float(__nv_bfloat16(__nv_bfloat16_raw{bits}))
                                : float(__half(__half_raw{bits}));
}

// c plus products, as tensor cores add them: all are cut, not rounded, kSpareBits below the last
// bit of a float32 as large as the largest, and so is the sum, to a float32 (Fasi et al.,
// "Numerical behavior of NVIDIA tensor cores", 2021).
template <int kCount>
float cut_sum(float c, const double (&products)[kCount]) {
  constexpr int kSpareBits = 2;
  double sum = c;
  double largest = fabs(c);
  for (const double product : products) {
    sum += product;
    largest = std::max(largest, fabs(product));
  }
  if (!isfinite(sum) || largest == 0) return static_cast<float>(sum);
  const int last_bit = ilogb(largest) - 23 - kSpareBits;
  const double scale = ldexp(1.0, -last_bit);
  auto units = static_cast<std::int64_t>(c * scale);
  for (const double product : products) units += static_cast<std::int64_t>(product * scale);
  int spare = 0;
  while (std::abs(units) >> spare >> 24 != 0) ++spare;
  return ldexpf(static_cast<float>(units / (1 << spare)), last_bit + spare);
}

// c plus the products of a row of A with a column of B, kAtOnce of them at a time.
template <int kAtOnce, int kDepth>
float add_products(float c, const float (&row)[kDepth], const float (&b)[kDepth][8], int column) {
  for (int first = 0; first < kDepth; first += kAtOnce) {
    double products[kAtOnce];
    for (int k = 0; k < kAtOnce; ++k) products[k] = double{row[first + k]} * b[first + k][column];
    c = cut_sum(c, products);
  }
  return c;
}

// As of sm_80; later ones add more at a time, and so cut less often.
constexpr int kHalvesAtOnce = 8;
constexpr int kTf32AtOnce = 4;

struct MmaPayload {
  Half type;
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

void resolve_mma(void* const* payloads) {
  require_all_lanes(payloads, "mma_m16n8k16");
  float a[16][16];
  float b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const MmaPayload*>(payloads[lane]);
    const int g = lane / 4;
    const int t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      a[g][2 * t + half] = to_float(own.type, own.a[0], half);
      a[g + 8][2 * t + half] = to_float(own.type, own.a[1], half);
      a[g][2 * t + 8 + half] = to_float(own.type, own.a[2], half);
      a[g + 8][2 * t + 8 + half] = to_float(own.type, own.a[3], half);
      b[2 * t + half][g] = to_float(own.type, own.b[0], half);
      b[2 * t + 8 + half][g] = to_float(own.type, own.b[1], half);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto& own = *static_cast<MmaPayload*>(payloads[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      own.d[i] = add_products<kHalvesAtOnce>(own.d[i], a[row], b, column);
    }
  }
}

float upper_bits(std::uint32_t bits) { return __uint_as_float(bits & ~0x1fffu); }

struct Tf32Payload {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

void resolve_mma_tf32(void* const* payloads) {
  require_all_lanes(payloads, "mma_m16n8k8_tf32");
  float a[16][8];
  float b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const Tf32Payload*>(payloads[lane]);
    const int g = lane / 4;
    const int t = lane % 4;
    a[g][t] = upper_bits(own.a[0]);
    a[g + 8][t] = upper_bits(own.a[1]);
    a[g][t + 4] = upper_bits(own.a[2]);
    a[g + 8][t + 4] = upper_bits(own.a[3]);
    b[t][g] = upper_bits(own.b[0]);
    b[t + 4][g] = upper_bits(own.b[1]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto& own = *static_cast<Tf32Payload*>(payloads[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      own.d[i] = add_products<kTf32AtOnce>(own.d[i], a[row], b, column);
    }
  }
}

}  // namespace

std::uint64_t shuffle(const char* name, Shuffle kind, unsigned mask, std::uint64_t value,
                      int operand, int width, Site site) {
  if (width <= 0 || width > 32 || (width & (width - 1)) != 0) {
    fail(std::string(name) + ": width " + std::to_string(width) + " is no power of two up to 32");
  }
  const int own = static_cast<int>(lane());
  const int begin = own & ~(width - 1);
  int source = own;
  switch (kind) {
    case Shuffle::index: source = begin + (operand & (width - 1)); break;
    case Shuffle::up: source = own - operand; break;
    case Shuffle::down: source = own + operand; break;
    case Shuffle::exclusive_or: source = own ^ operand; break;
  }
  if (source >= begin + width || (kind == Shuffle::up && source < begin)) source = own;
  ShufflePayload payload = {value, static_cast<unsigned>(source), 0};
  warp_rendezvous(name, mask, &payload, &resolve_shuffle, site);
  return payload.result;
}

unsigned vote(const char* name, unsigned mask, bool predicate, Site site) {
  NumberPayload payload = {predicate, Reduction::bit_or, 0};
  warp_rendezvous(name, mask, &payload, &resolve_vote, site);
  return static_cast<unsigned>(payload.result);
}

unsigned match_any(unsigned mask, std::uint64_t value, Site site) {
  NumberPayload payload = {value, Reduction::bit_or, 0};
  warp_rendezvous("__match_any_sync", mask, &payload, &resolve_match, site);
  return static_cast<unsigned>(payload.result);
}

std::int64_t reduce(const char* name, Reduction kind, unsigned mask, std::int64_t value,
                    Site site) {
  NumberPayload payload = {static_cast<std::uint64_t>(value), kind, 0};
  warp_rendezvous(name, mask, &payload, &resolve_reduce, site);
  return static_cast<std::int64_t>(payload.result);
}

void mma_m16n8k16(Half type, float (&d)[4], const std::uint32_t (&a)[4],
                  const std::uint32_t (&b)[2], Site site) {
  MmaPayload payload = {type, d, a, b};
  warp_rendezvous("mma_m16n8k16", kAllLanes, &payload, &resolve_mma, site);
}

void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                      Site site) {
  for (const std::uint32_t bits : {a[0], a[1], a[2], a[3], b[0], b[1]}) {
    if (!isnan(__uint_as_float(bits)) && upper_bits(bits) != __uint_as_float(bits)) {
      fail(std::string("mma_m16n8k8_tf32: an operand is not rounded to TensorFloat32, at ") +
           site.file + ":" + std::to_string(site.line));
    }
  }
  Tf32Payload payload = {d, a, b};
  warp_rendezvous("mma_m16n8k8_tf32", kAllLanes, &payload, &resolve_mma_tf32, site);
}

}  // namespace cuda_on_host
