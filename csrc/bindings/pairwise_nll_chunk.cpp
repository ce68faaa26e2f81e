#include "ops/pairwise_nll_chunk.h"

#include "bindings/arguments.h"

namespace deepcrf {

namespace {

EdgeChunk edge_chunk(int64_t first, int64_t count, int64_t num_edges) {
  DEEPCRF_CHECK(0 <= first && first <= num_edges && count <= num_edges - first, "chunk: got edges ",
                first, "..", first + count - 1, ", must be among ", num_edges);
  return {first, count};
}

// Columns of a matrix whose rows hold at least `columns` values and are padded.
int64_t row_pitch(const Tensor& matrix, const char* name, int64_t columns) {
  matrix.expect_shape({-1, -1});
  const int64_t pitch = matrix.size(1);
  DEEPCRF_CHECK(pitch >= columns && pitch % 8 == 0, name, ": got rows of ", pitch,
                ", must be a multiple of 8 and at least ", columns);
  return pitch;
}

void edge_hidden(const py::tuple& graph, const py::tuple& potential, int64_t first_edge,
                 const py::object& hidden, int num_threads, uintptr_t stream) {
  const Tensor out(hidden, "hidden");
  const Device device = out.device();
  const GraphView view = graph_view(graph, device);
  const AnyFactoredPotential factored = factored_potential(potential, view.num_nodes);
  const int64_t pitch = row_pitch(out, "hidden", factored.num_features + 1);
  const EdgeChunk chunk = edge_chunk(first_edge, out.size(0), view.num_edges);
  void* data = untyped(hidden, "hidden", factored.dtype, device, {chunk.count, pitch});
  DEEPCRF_LAUNCH_CUDA_ONLY(device, edge_hidden, view, factored, chunk, pitch, data,
                           execution_context(num_threads, stream));
}

void chunk_losses(const py::tuple& graph, const py::object& labels, int64_t ignore_index,
                  int64_t num_labels, int64_t first_edge, const py::object& edge_weight,
                  const py::object& energies, const py::object& losses, bool differentiate,
                  int num_threads, uintptr_t stream) {
  const Tensor table(energies, "energies");
  const Device device = table.device();
  const DType dtype = table.dtype();
  const GraphView view = graph_view(graph, device);
  const int64_t pitch = row_pitch(table, "energies", num_labels * num_labels);
  const EdgeChunk chunk = edge_chunk(first_edge, table.size(0), view.num_edges);
  const EdgeLabels truth = edge_labels(labels, ignore_index, view.num_nodes, device);
  const DType sums = accumulator_dtype(dtype);
  const void* weight = optional_edge_weight(edge_weight, sums, device, view.num_edges);
  void* out = untyped(losses, "losses", sums, device, {view.num_edges});
  DEEPCRF_LAUNCH_CUDA_ONLY(device, chunk_losses, view, dtype, num_labels, pitch, truth, chunk,
                           weight, table.untyped_data(), out, differentiate,
                           execution_context(num_threads, stream));
}

void reduce_edges(const py::tuple& graph, const py::tuple& potential, int64_t first_edge,
                  const py::object& grad_hidden, const py::object& grad_source,
                  const py::object& grad_target, int num_threads, uintptr_t stream) {
  const Tensor values(grad_hidden, "grad_hidden");
  const Device device = values.device();
  const GraphView view = graph_view(graph, device);
  const AnyFactoredPotential factored = factored_potential(potential, view.num_nodes);
  const int64_t N = view.num_nodes, D = factored.num_features;
  const int64_t pitch = row_pitch(values, "grad_hidden", D);
  const EdgeChunk chunk = edge_chunk(first_edge, values.size(0), view.num_edges);
  const DType sums = accumulator_dtype(factored.dtype);
  const void* of_hidden = untyped(values, factored.dtype, device, {chunk.count, pitch});
  void* of_source = untyped(grad_source, "grad_source", sums, device, {N, D});
  void* of_target = untyped(grad_target, "grad_target", sums, device, {N, D});
  DEEPCRF_LAUNCH_CUDA_ONLY(device, reduce_edges, view, factored, chunk, pitch, of_hidden, of_source,
                           of_target, execution_context(num_threads, stream));
}

}  // namespace

void bind_pairwise_nll_chunk(py::module_& module) {
  module.def("edge_hidden", &edge_hidden, py::arg("graph"), py::arg("potential"),
             py::arg("first_edge"), py::arg("hidden"), py::arg("num_threads"), py::arg("stream"));
  module.def("chunk_losses", &chunk_losses, py::arg("graph"), py::arg("labels"),
             py::arg("ignore_index"), py::arg("num_labels"), py::arg("first_edge"),
             py::arg("edge_weight"), py::arg("energies"), py::arg("losses"),
             py::arg("differentiate"), py::arg("num_threads"), py::arg("stream"));
  module.def("reduce_edges", &reduce_edges, py::arg("graph"), py::arg("potential"),
             py::arg("first_edge"), py::arg("grad_hidden"), py::arg("grad_source"),
             py::arg("grad_target"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
