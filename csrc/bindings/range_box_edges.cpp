#include "ops/range_box_edges.h"

#include "bindings/tensor.h"

namespace deepcrf {

namespace {

void range_box_edges(int64_t height, int64_t width, int64_t top, int64_t bottom, int64_t left,
                     int64_t right, const py::object& row_offsets, const py::object& targets,
                     const py::object& reverse_row_offsets, const py::object& reverse_sources,
                     const py::object& reverse_edges, const py::object& sources, int num_threads,
                     uintptr_t stream) {
  DEEPCRF_CHECK(height >= 0 && width >= 0, "height and width must not be negative, got ", height,
                " and ", width);
  DEEPCRF_CHECK(top <= bottom && left <= right, "box must not be inverted, got rows ", top, "..",
                bottom, " and columns ", left, "..", right);
  const RangeBoxGrid grid = {{height, top, bottom}, {width, left, right}};
  const int64_t num_nodes = grid.num_nodes();
  const int64_t num_edges = grid.row_offset(height, 0);

  const Tensor offsets(row_offsets, "row_offsets");
  const Device& device = offsets.device();
  const auto output = [&](const py::object& tensor, const char* name, int64_t size) {
    return Tensor(tensor, name).expect_device(device).expect_shape({size});
  };
  const RangeBoxEdges edges = {
      output(row_offsets, "row_offsets", num_nodes + 1).output<int64_t>(),
      output(targets, "targets", num_edges).output<int32_t>(),
      output(reverse_row_offsets, "reverse_row_offsets", num_nodes + 1).output<int64_t>(),
      output(reverse_sources, "reverse_sources", num_edges).output<int32_t>(),
      output(reverse_edges, "reverse_edges", num_edges).output<int64_t>(),
      output(sources, "sources", num_edges).output<int32_t>(),
  };
  DEEPCRF_LAUNCH(device, range_box_edges, grid, edges, execution_context(num_threads, stream));
}

}  // namespace

void bind_range_box_edges(py::module_& module) {
  module.def("range_box_edges", &range_box_edges, py::arg("height"), py::arg("width"),
             py::arg("top"), py::arg("bottom"), py::arg("left"), py::arg("right"),
             py::arg("row_offsets"), py::arg("targets"), py::arg("reverse_row_offsets"),
             py::arg("reverse_sources"), py::arg("reverse_edges"), py::arg("sources"),
             py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
