#include "ops/gated_crf_loss.h"

#include <algorithm>
#include <array>
#include <limits>

#include "bindings/arguments.h"

namespace deepcrf {

namespace {

GatedCRFLoss checked_loss(const py::object& probabilities, const py::object& image,
                          const py::object& mask, int64_t radius, const py::object& total,
                          const py::object& gradient) {
  const Tensor input(probabilities, "probabilities");
  input.expect_shape({-1, -1, -1, -1, -1});
  const DType dtype = input.dtype();
  const Device& device = input.device();
  const int64_t B = input.size(0), K = input.size(1);
  const int64_t Z = input.size(2), Y = input.size(3), X = input.size(4);
  const Tensor colours(image, "image");
  colours.expect_shape({B, -1, Z, Y, X});
  const int64_t C = colours.size(1);
  DEEPCRF_CHECK(K > 0 && C > 0 && Z > 0 && Y > 0 && X > 0, "probabilities: got K = ", K,
                ", C = ", C, ", Z = ", Z, ", Y = ", Y, ", X = ", X, ", must be positive");
  DEEPCRF_CHECK(radius >= 0, "radius: got ", radius, ", must not be negative");
  return {dtype,
          B,
          K,
          C,
          Z,
          Y,
          X,
          radius,
          input.untyped_data(),
          untyped(image, "image", dtype, device, {B, C, Z, Y, X}),
          mask.is_none() ? nullptr : untyped(mask, "mask", dtype, device, {B, Z, Y, X}),
          untyped_output(total, "total", dtype, device, {}),
          gradient.is_none()
              ? nullptr
              : untyped_output(gradient, "gradient", dtype, device, {B, K, Z, Y, X})};
}

// Kernels are (weight, factor of squared pixels, factor of squared colours).
GatedKernels checked_kernels(const std::vector<std::array<double, 3>>& kernels) {
  DEEPCRF_CHECK(kernels.size() <= kMaxGatedKernels, "kernels: got ", kernels.size(),
                ", must be at most ", kMaxGatedKernels);
  constexpr double kLargest = std::numeric_limits<float>::max();
  GatedKernels checked = {};
  for (const auto& [weight, position, colour] : kernels) {
    checked.kernels[checked.count++] = {weight, std::min(position, kLargest),
                                        std::min(colour, kLargest)};
  }
  return checked;
}

void gated_crf_loss(const py::object& probabilities, const py::object& image,
                    const py::object& mask, int64_t radius, const py::object& total,
                    const py::object& gradient, const std::vector<std::array<double, 3>>& kernels,
                    const py::object& allocate, int num_threads, uintptr_t stream) {
  const GatedCRFLoss loss = checked_loss(probabilities, image, mask, radius, total, gradient);
  const Device device = Tensor(probabilities, "probabilities").device();
  const GatedKernels terms = checked_kernels(kernels);
  const ScratchContext ctx(num_threads, stream, device, allocate,
                           DEEPCRF_WORKSPACE(device, gated_crf_loss, loss));
  DEEPCRF_LAUNCH(device, gated_crf_loss, loss, terms, ctx);
}

}  // namespace

void bind_gated_crf_loss(py::module_& module) {
  module.def("gated_crf_loss", &gated_crf_loss, py::arg("probabilities"), py::arg("image"),
             py::arg("mask"), py::arg("radius"), py::arg("total"), py::arg("gradient"),
             py::arg("kernels"), py::arg("allocate"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
