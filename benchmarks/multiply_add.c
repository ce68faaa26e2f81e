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

#ifdef __AVX512BF16__
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
