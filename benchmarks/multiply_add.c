// Multiply-adds on registers alone: the most arithmetic that a core does. See peak.py.
//
// Every function runs `rounds` rounds over enough independent registers to hide the latency of the
// instruction, and returns the number of operations, two a multiply-add. `value` is read and
// written, so that nothing can be left out.

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

enum { REGISTERS = 12, FLOATS = BYTES / 4 };
typedef float lanes __attribute__((vector_size(BYTES)));

double float32_multiply_adds(long rounds, float* value) {
  const lanes factor = *value - (lanes){0}, term = factor;
  lanes sums[REGISTERS];
  for (int i = 0; i < REGISTERS; ++i) sums[i] = factor * (float)i;
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < REGISTERS; ++i) sums[i] = sums[i] * factor + term;
  }
  for (int i = 0; i < REGISTERS; ++i) *value += sums[i][i % FLOATS];
  return 2.0 * rounds * REGISTERS * FLOATS;
}

#ifdef TILES
// Of matrix tiles (Intel AMX), 16 x 32 by 32 x 16. The process may use them once this package's
// extension has chosen them.
double bfloat16_multiply_adds(long rounds, float* value) {
  struct {
    unsigned char palette, rest[15];
    unsigned short row_bytes[16];
    unsigned char rows[16];
  } shapes = {.palette = 1};
  for (int tile = 0; tile < 8; ++tile) {
    shapes.row_bytes[tile] = 64;
    shapes.rows[tile] = 16;
  }
  float sums[16 * 16];
  __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
  __asm__ volatile(
      "tilezero %tmm0\n tilezero %tmm1\n tilezero %tmm2\n tilezero %tmm3\n"
      "tilezero %tmm4\n tilezero %tmm5\n tilezero %tmm6\n tilezero %tmm7");
  rounds /= 16;  // a product takes 16 cycles
  for (long round = 0; round < rounds; ++round) {
    __asm__ volatile(
        "tdpbf16ps %tmm7, %tmm6, %tmm0\n tdpbf16ps %tmm7, %tmm6, %tmm1\n"
        "tdpbf16ps %tmm7, %tmm6, %tmm2\n tdpbf16ps %tmm7, %tmm6, %tmm3\n"
        "tdpbf16ps %tmm7, %tmm6, %tmm4\n tdpbf16ps %tmm7, %tmm6, %tmm5");
  }
  __asm__ volatile("tilestored %%tmm0, (%0,%1,1)\n tilerelease" ::"r"(sums), "r"(64L) : "memory");
  *value += sums[0];
  return 2.0 * rounds * 6 * 16 * 16 * 32;
}
#elif defined(__AVX512BF16__)
#include <immintrin.h>

// Of pairs: each of 16 lanes adds two products of bfloat16 to a float32.
double bfloat16_multiply_adds(long rounds, float* value) {
  const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(*value), _mm512_set1_ps(*value));
  __m512 sums[REGISTERS];
  for (int i = 0; i < REGISTERS; ++i) sums[i] = _mm512_set1_ps((float)i);
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < REGISTERS; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], factor, factor);
  }
  for (int i = 0; i < REGISTERS; ++i) *value += _mm512_reduce_add_ps(sums[i]);
  return 4.0 * rounds * REGISTERS * FLOATS;
}
#endif
