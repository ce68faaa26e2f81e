// The extension module deepcrf_ext._C: one bind function an operator, and facts about the build.
#include <dlfcn.h>
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "core/checks.h"
#include "cpu/dispatch.h"
#ifdef DEEPCRF_WITH_CUDA
#include "cuda/runtime.h"
#endif

namespace py = pybind11;

namespace deepcrf {

void bind_range_box_edges(py::module_& module);
void bind_pairwise_messages(py::module_& module);
void bind_pairwise_messages_block(py::module_& module);
void bind_mean_field(py::module_& module);
void bind_pairwise_nll(py::module_& module);
void bind_pairwise_nll_chunk(py::module_& module);
void bind_permutohedral_filter(py::module_& module);
void bind_dense_crf(py::module_& module);
void bind_gated_crf_loss(py::module_& module);

namespace {

// Of the functions that Python calls: raised where one of them takes something else, as INTERFACE
// in deepcrf_ext/ops/_backend.py is.
constexpr int kInterface = 4;

// The file that omp_get_max_threads was resolved in.
std::string openmp_runtime() {
  Dl_info info = {};
  const bool found = dladdr(reinterpret_cast<void*>(&omp_get_max_threads), &info) != 0;
  return found && info.dli_fname != nullptr ? info.dli_fname : "unknown";
}

// What CUDA kernels were built with; None in a CPU-only build.
py::object cuda_build() {
#ifdef DEEPCRF_WITH_CUDA
  py::dict build;
  build["compiler"] = DEEPCRF_CUDA_COMPILER;
  build["architectures"] = DEEPCRF_CUDA_ARCHITECTURES;
  build["runtime_version"] = cuda::runtime_version();
  return build;
#else
  return py::none();
#endif
}

}  // namespace

}  // namespace deepcrf

PYBIND11_MODULE(DEEPCRF_MODULE_NAME, module) {
  using namespace deepcrf;
  // Error is a ValueError to Python; BackendError, like any std::runtime_error, a RuntimeError.
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    }
  });

  module.attr("interface") = kInterface;
  module.attr("compiler") = DEEPCRF_COMPILER;
  module.def("cuda_build", &cuda_build);
#ifdef DEEPCRF_CUDA_ON_HOST
  module.attr("cuda_on_host") = true;  // this build runs CUDA kernels on CPU tensors, for tests
#else
  module.attr("cuda_on_host") = false;
#endif
  module.def("cpu_isa", [] { return std::string(cpu::isa_name(cpu::active_isa())); });
  module.def("supported_cpu_isas", &cpu::supported_isas);
  module.def("openmp_runtime", &openmp_runtime);

  bind_range_box_edges(module);
  bind_pairwise_messages(module);
  bind_pairwise_messages_block(module);
  bind_mean_field(module);
  bind_pairwise_nll(module);
  bind_pairwise_nll_chunk(module);
  bind_permutohedral_filter(module);
  bind_dense_crf(module);
  bind_gated_crf_loss(module);
}
