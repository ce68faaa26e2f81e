// Launchers of the shim's own test kernels.
#pragma once

#include <cstdint>

#include "core/dtypes.h"

namespace deepcrf::cuda {

void softmax(const float* input,  // [rows, columns]
             float* output,       // [rows, columns]
             int64_t rows, int columns);
void block_sum(const float* input,  // [rows, columns]
               float* output,       // [rows]
               int64_t rows, int columns);
void matmul(const bfloat16* a,  // [m, k]
            const bfloat16* b,  // [k, n]
            float* c,           // [m, n]
            int m, int n, int k);
void tf32_product(const float* a,      // [16, 8]
                  const float* b,      // [8, 8]
                  float* c);           // [16, 8]
void last_block_sum(const int* input,  // [count]
                    int* partial,      // [blocks]
                    int* counter,      // [1], zero
                    int* output,       // [1]
                    int64_t count, int blocks);
void vote(const int* input,  // [count], count a multiple of 32
          int* same,         // [count]
          int* ranks,        // [count]
          int64_t count);

// Runs the planted fault of that name, or its corrected twin; true if there is one.
bool run_fault(const char* name, bool corrected,
               const float* input,  // [count], count a multiple of 128
               float* output,       // [count]
               int count);

}  // namespace deepcrf::cuda
