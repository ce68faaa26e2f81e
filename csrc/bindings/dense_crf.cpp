#include "ops/dense_crf.h"

#include "bindings/lattice.h"

namespace deepcrf {

namespace {

template <class Lattice>
struct DenseCRFCall {
  Device device;
  std::vector<DenseKernel<Lattice>> kernels;
  DenseCRFArguments arguments;
};

// Each kernel is (lattice, splat_scale, slice_scale, compatibility).
template <class Lattice>
DenseCRFCall<Lattice> checked_call(const py::list& kernels, const py::object& unary,
                                   int64_t iterations, const py::object& marginals, bool log) {
  const Tensor energies(unary, "unary");
  energies.expect_shape({-1, -1});
  const Device device = energies.device();
  const DType dtype = energies.dtype();
  const int64_t K = energies.size(0), N = energies.size(1);
  DEEPCRF_CHECK(K > 0 && N > 0, "unary: got K = ", K, ", N = ", N, ", must be positive");
  DEEPCRF_CHECK(iterations >= 0, "iterations: got ", iterations, ", must not be negative");

  std::vector<DenseKernel<Lattice>> dense;
  for (const py::handle& handle : kernels) {
    const py::tuple kernel = handle.cast<py::tuple>();
    expect_count(kernel, 4, "kernel");
    const Lattice lattice = lattice_view<Lattice>(kernel[0].cast<py::tuple>(), device);
    DEEPCRF_CHECK(lattice.num_values == N, "lattice: got ", lattice.num_values,
                  " positions, must be ", N);
    const int64_t dim = kernel[3].attr("dim")().cast<int64_t>();
    DEEPCRF_CHECK(dim >= 0 && dim <= 2, "compatibility: got ", dim, " dimensions, must be 0 to 2");
    const void* compatibility = dim == 0 ? untyped(kernel[3], "compatibility", dtype, device, {})
                                : dim == 1
                                    ? untyped(kernel[3], "compatibility", dtype, device, {K})
                                    : untyped(kernel[3], "compatibility", dtype, device, {K, K});
    dense.push_back({lattice, untyped(kernel[1], "splat_scale", dtype, device, {N}),
                     untyped(kernel[2], "slice_scale", dtype, device, {N}), dim, compatibility});
  }
  const DenseCRFArguments arguments = {
      dtype,
      K,
      N,
      iterations,
      energies.untyped_data(),
      untyped_output(marginals, "marginals", dtype, device, {K, N}),
      log};
  return {device, dense, arguments};
}

void dense_crf(const py::list& kernels, const py::object& unary, int64_t iterations,
               const py::object& marginals, bool log, const py::object& allocate, int num_threads,
               uintptr_t stream) {
  const Device device = Tensor(unary, "unary").device();
  if (DEEPCRF_ON_CUDA(device)) {
    const auto call =
        checked_call<cuda::PermutohedralLattice>(kernels, unary, iterations, marginals, log);
    const ScratchContext ctx(num_threads, stream, device, allocate,
                             DEEPCRF_CUDA_WORKSPACE(dense_crf, call.kernels, call.arguments));
    DEEPCRF_LAUNCH_CUDA_ONLY(device, dense_crf, call.kernels, call.arguments, ctx);
  } else {
    const auto call =
        checked_call<cpu::PermutohedralLattice>(kernels, unary, iterations, marginals, log);
    DEEPCRF_LAUNCH_CPU_ONLY(device, dense_crf, call.kernels, call.arguments,
                            execution_context(num_threads, stream));
  }
}

}  // namespace

void bind_dense_crf(py::module_& module) {
  module.def("dense_crf", &dense_crf, py::arg("kernels"), py::arg("unary"), py::arg("iterations"),
             py::arg("marginals"), py::arg("log"), py::arg("allocate"), py::arg("num_threads"),
             py::arg("stream"));
}

}  // namespace deepcrf
