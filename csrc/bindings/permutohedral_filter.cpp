#include <algorithm>

#include "bindings/lattice.h"

namespace deepcrf {

namespace {

// On the CPU: fills vertices and weights, and returns the arrays whose sizes the caller could not
// know.
LatticePoints permutohedral_lattice(const py::object& features, const py::object& vertices,
                                    const py::object& weights, int num_threads, uintptr_t stream) {
  const Tensor values(features, "features");
  values.expect_device({false, 0}).expect_shape({-1, -1});
  const int64_t d = values.size(0), N = values.size(1);
  expect_lattice_size(N, d, "features");
  int16_t* vertex = Tensor(vertices, "vertices")
                        .expect_device(values.device())
                        .expect_shape({N, d + 1})
                        .output<int16_t>();
  float* weight = Tensor(weights, "weights")
                      .expect_device(values.device())
                      .expect_shape({N, d + 1})
                      .output<float>();
  LatticePoints points;
  DEEPCRF_LAUNCH_CPU_ONLY(values.device(), permutohedral_lattice, values.data<float>(), N, d,
                          vertex, weight, &points, execution_context(num_threads, stream));
  return points;
}

int64_t permutohedral_lattice_workspace(const py::object& features) {
  const Tensor values(features, "features");
  values.expect_shape({-1, -1});
  expect_lattice_size(values.size(1), values.size(0), "features");
  return DEEPCRF_CUDA_WORKSPACE(permutohedral_lattice, values.size(1), values.size(0));
}

// On CUDA: fills num_points, vertices and weights of a lattice.
void permutohedral_points_cuda(const py::object& features, const py::tuple& lattice,
                               const py::object& workspace, int num_threads, uintptr_t stream) {
  const Tensor values(features, "features");
  const Device device = values.device();
  const auto view = lattice_view<cuda::PermutohedralLattice>(lattice, device);
  values.expect_shape({view.num_dims, view.num_values});
  const ExecutionContext ctx = execution_context(num_threads, stream, workspace, device);
  DEEPCRF_LAUNCH_CUDA_ONLY(device, permutohedral_points, values.data<float>(), view, ctx);
}

// On CUDA, then, with the same workspace: fills the other arrays.
void permutohedral_lattice_cuda(const py::tuple& lattice, const py::object& workspace,
                                int num_threads, uintptr_t stream) {
  expect_count(lattice, 7, "lattice");
  const Device device = Tensor(lattice[0], "num_points").device();
  const auto view = lattice_view<cuda::PermutohedralLattice>(lattice, device);
  DEEPCRF_CHECK(view.max_points > 0, "neighbours: got no rows, must have one a lattice point");
  const ExecutionContext ctx = execution_context(num_threads, stream, workspace, device);
  DEEPCRF_LAUNCH_CUDA_ONLY(device, permutohedral_lattice, view, ctx);
}

template <class T>
void copy_to(const std::vector<T>& from, const py::object& to, const char* name) {
  const Tensor tensor(to, name);
  tensor.expect_device({false, 0}).expect_shape({static_cast<int64_t>(from.size())});
  std::copy(from.begin(), from.end(), tensor.output<T>());
}

template <class Lattice>
struct FilterCall {
  Lattice lattice;
  DType dtype;
  int64_t num_channels;
  const void* values;
  void* filtered;

  FilterCall(const py::tuple& tensors, const Tensor& input, const py::object& output)
      : lattice(lattice_view<Lattice>(tensors, input.device())),
        dtype(input.dtype()),
        values(input.untyped_data()) {
    const int64_t N = lattice.num_values;
    input.expect_shape({N, -1});
    num_channels = input.size(1);
    DEEPCRF_CHECK(num_channels > 0, "values: got 0 channels, must be positive");
    filtered = untyped_output(output, "filtered", dtype, input.device(), {N, num_channels});
  }
};

void permutohedral_filter(const py::tuple& lattice, const py::object& values, bool transposed,
                          const py::object& filtered, const py::object& allocate, int num_threads,
                          uintptr_t stream) {
  const Tensor input(values, "values");
  const Device device = input.device();
  if (DEEPCRF_ON_CUDA(device)) {
    const FilterCall<cuda::PermutohedralLattice> call(lattice, input, filtered);
    const ScratchContext ctx(
        num_threads, stream, device, allocate,
        DEEPCRF_CUDA_WORKSPACE(permutohedral_filter, call.lattice, call.dtype, call.num_channels));
    DEEPCRF_LAUNCH_CUDA_ONLY(device, permutohedral_filter, call.lattice, call.dtype,
                             call.num_channels, call.values, transposed, call.filtered, ctx);
  } else {
    const FilterCall<cpu::PermutohedralLattice> call(lattice, input, filtered);
    DEEPCRF_LAUNCH_CPU_ONLY(device, permutohedral_filter, call.lattice, call.dtype,
                            call.num_channels, call.values, transposed, call.filtered,
                            execution_context(num_threads, stream));
  }
}

}  // namespace

void bind_permutohedral_filter(py::module_& module) {
  // Local to this module: another build of the core may be loaded beside it.
  py::class_<LatticePoints>(module, "LatticePoints", py::module_local())
      .def_readonly("num_points", &LatticePoints::num_points)
      .def_property_readonly(
          "num_block_offsets",
          [](const LatticePoints& points) { return points.block_offsets.size(); })
      .def_property_readonly("num_entries",
                             [](const LatticePoints& points) { return points.entry_points.size(); })
      .def(
          "copy_to",
          [](const LatticePoints& points, const py::object& block_offsets,
             const py::object& entry_points, const py::object& point_offsets,
             const py::object& point_entries, const py::object& neighbours) {
            copy_to(points.block_offsets, block_offsets, "block_offsets");
            copy_to(points.entry_points, entry_points, "entry_points");
            copy_to(points.point_offsets, point_offsets, "point_offsets");
            copy_to(points.point_entries, point_entries, "point_entries");
            copy_to(points.neighbours, neighbours, "neighbours");
          },
          py::arg("block_offsets"), py::arg("entry_points"), py::arg("point_offsets"),
          py::arg("point_entries"), py::arg("neighbours"));
  module.def("permutohedral_lattice", &permutohedral_lattice, py::arg("features"),
             py::arg("vertices"), py::arg("weights"), py::arg("num_threads"), py::arg("stream"));
  module.def("permutohedral_lattice_workspace", &permutohedral_lattice_workspace,
             py::arg("features"));
  module.def("permutohedral_points_cuda", &permutohedral_points_cuda, py::arg("features"),
             py::arg("lattice"), py::arg("workspace"), py::arg("num_threads"), py::arg("stream"));
  module.def("permutohedral_lattice_cuda", &permutohedral_lattice_cuda, py::arg("lattice"),
             py::arg("workspace"), py::arg("num_threads"), py::arg("stream"));
  module.def("permutohedral_filter", &permutohedral_filter, py::arg("lattice"), py::arg("values"),
             py::arg("transposed"), py::arg("filtered"), py::arg("allocate"),
             py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
