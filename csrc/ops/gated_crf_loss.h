// The gated CRF loss (Obukhov et al., "Gated CRF Loss for Weakly Supervised Semantic Image
// Segmentation", 2019; deepcrf_ext/ops/gated_crf_loss.py):
//   total = Σ_p m_p Σ_q κ(p, q) (1 - Σ_k S_pk S_qk)
// over all pixels p of a batch of images and all q != p of the same image that lie within `radius`
// of p along every axis; κ(p, q) = Σ_kernels w exp(-a |Δposition|² - b |Δcolour|²).
//
// κ is symmetric, so every unordered pair counts m_p + m_q times: without a gradient each pair is
// looked at once, and the gradient of S_p gathers both of its roles,
//   d total / d S_p = -Σ_q κ(p, q) (m_p + m_q) S_q.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/dtypes.h"

namespace deepcrf {

// One term of κ. The factors are finite, so that they times no difference are 0.
struct GatedKernel {
  double weight;           // w
  double position_factor;  // a, of squared pixels
  double colour_factor;    // b, of squared colours; 0 for positions alone
};

constexpr int kMaxGatedKernels = 16;

struct GatedKernels {
  int count;
  GatedKernel kernels[kMaxGatedKernels];
};

// Images of fewer than three axes have leading axes of size 1.
struct GatedCRFLoss {
  DType dtype;  // of everything: float32 or float64
  int64_t batch_size;
  int64_t num_labels;
  int64_t num_channels;
  int64_t depth, height, width;
  int64_t radius;             // >= 0
  const void* probabilities;  // S [B, K, Z, Y, X]
  const void* image;          // [B, C, Z, Y, X]
  const void* mask;           // m [B, Z, Y, X], or null for ones
  void* total;                // []
  void* gradient;             // [B, K, Z, Y, X], or null where it is not wanted
};

namespace cpu {
void gated_crf_loss(const GatedCRFLoss& loss, const GatedKernels& kernels,
                    const ExecutionContext& ctx);
}
namespace cuda {
int64_t gated_crf_loss_workspace(const GatedCRFLoss& loss);
void gated_crf_loss(const GatedCRFLoss& loss, const GatedKernels& kernels,
                    const ExecutionContext& ctx);
}  // namespace cuda

}  // namespace deepcrf
