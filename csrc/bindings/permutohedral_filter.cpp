#include <algorithm>
#include <limits>

#include "bindings/lattice.h"

namespace deepcrf {

namespace {

// Fills vertices and weights, and returns the arrays whose sizes the caller could not know.
LatticePoints permutohedral_lattice(const py::object& features, const py::object& vertices,
                                    const py::object& weights, int num_threads, uintptr_t stream) {
  const Tensor values(features, "features");
  values.expect_shape({-1, -1});
  const Device device = values.device();
  const int64_t d = values.size(0), N = values.size(1);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  DEEPCRF_CHECK(d > 0 && d < 256 && N > 0 && N <= kMost / (d + 1), "features: got d = ", d,
                ", N = ", N, ", must be 1 to 255, and N > 0 with N * (d + 1) < 2^31");
  int16_t* vertex =
      Tensor(vertices, "vertices").expect_device(device).expect_shape({N, d + 1}).data<int16_t>();
  float* weight =
      Tensor(weights, "weights").expect_device(device).expect_shape({N, d + 1}).data<float>();
  LatticePoints points;
  DEEPCRF_LAUNCH_CPU(device, permutohedral_lattice, values.data<float>(), N, d, vertex, weight,
                     &points, execution_context(num_threads, stream));
  return points;
}

template <class T>
void copy_to(const std::vector<T>& from, const py::object& to, const char* name) {
  const Tensor tensor(to, name);
  tensor.expect_device({false, 0}).expect_shape({static_cast<int64_t>(from.size())});
  std::copy(from.begin(), from.end(), tensor.data<T>());
}

void permutohedral_filter(const py::tuple& lattice, const py::object& values, bool transposed,
                          const py::object& filtered, int num_threads, uintptr_t stream) {
  const Tensor input(values, "values");
  const Device device = input.device();
  const PermutohedralLattice view = permutohedral_lattice_view(lattice, device);
  input.expect_shape({view.num_values, -1});
  const int64_t C = input.size(1);
  DEEPCRF_CHECK(C > 0, "values: got 0 channels, must be positive");
  const DType dtype = input.dtype();
  void* output = untyped(filtered, "filtered", dtype, device, {view.num_values, C});
  DEEPCRF_LAUNCH_CPU(device, permutohedral_filter, view, dtype, C, input.untyped_data(), transposed,
                     output, execution_context(num_threads, stream));
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
  module.def("permutohedral_filter", &permutohedral_filter, py::arg("lattice"), py::arg("values"),
             py::arg("transposed"), py::arg("filtered"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
