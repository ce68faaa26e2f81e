#include "ops/pairwise_nll_chunk.h"

#include "bindings/arguments.h"

namespace deepcrf {

namespace {

EdgeChunk edge_chunk(int64_t first, int64_t count, int64_t num_edges) {
  DEEPCRF_CHECK(0 <= first && first <= num_edges && count <= num_edges - first, "chunk: got edges ",
                first, "..", first + count - 1, ", must be among ", num_edges);
  DEEPCRF_CHECK(count <= INT32_MAX, "chunk: got ", count, " edges, must be at most ", INT32_MAX);
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

// Where the hidden vectors of a chunk are positive: the rows of a larger chunk may be there.
uint8_t* mask_rows(const py::object& masks, const EdgeChunk& chunk, DType dtype,
                   int64_t num_features, const Device& device) {
  const Tensor rows(masks, "masks");
  const int64_t size = dtype_size(dtype);
  rows.expect_device(device).expect_shape({-1, (num_features * size + 15) / 16});
  DEEPCRF_CHECK(rows.size(0) >= chunk.count, "masks: got ", rows.size(0),
                " rows, must be at least ", chunk.count);
  return rows.output<uint8_t>();
}

void pack_weight(const py::tuple& potential, int64_t num_nodes, const py::object& rows,
                 int num_threads, uintptr_t stream) {
  const Tensor out(rows, "rows");
  const Device device = out.device();
  const AnyFactoredPotential factored = factored_potential(potential, num_nodes);
  const int64_t pairs = factored.num_labels * factored.num_labels;
  const int64_t pitch = row_pitch(out, "rows", factored.num_features + 1);
  DEEPCRF_CHECK(out.size(0) >= pairs, "rows: got ", out.size(0), ", must be at least ", pairs);
  void* data = untyped_output(out, factored.dtype, device, {-1, pitch});
  DEEPCRF_LAUNCH_CUDA_ONLY(device, pack_weight, factored, out.size(0), pitch, data,
                           execution_context(num_threads, stream));
}

void unpack_weight(const py::object& rows, const py::object& weight, const py::object& bias,
                   int num_threads, uintptr_t stream) {
  const Tensor values(rows, "rows"), out(weight, "weight");
  const Device device = values.device();
  const DType dtype = values.dtype();
  out.expect_shape({-1, -1, -1});
  const int64_t K = out.size(0), D = out.size(2);
  const int64_t pitch = row_pitch(values, "rows", D + 1);
  DEEPCRF_CHECK(values.size(0) >= K * K, "rows: got ", values.size(0), ", must be at least ",
                K * K);
  void* of_weight = untyped_output(out, dtype, device, {K, K, D});
  void* of_bias = untyped_output(bias, "bias", dtype, device, {K, K});
  DEEPCRF_LAUNCH_CUDA_ONLY(device, unpack_weight, dtype, values.untyped_data(), K, D, pitch,
                           of_weight, of_bias, execution_context(num_threads, stream));
}

void edge_hidden(const py::tuple& graph, const py::tuple& potential, int64_t first_edge,
                 const py::object& hidden, const py::object& masks, int num_threads,
                 uintptr_t stream) {
  const Tensor out(hidden, "hidden");
  const Device device = out.device();
  const GraphView view = graph_view(graph, device);
  const AnyFactoredPotential factored = factored_potential(potential, view.num_nodes);
  const int64_t D = factored.num_features;
  const int64_t pitch = row_pitch(out, "hidden", D + 1);
  const EdgeChunk chunk = edge_chunk(first_edge, out.size(0), view.num_edges);
  void* data = untyped_output(out, factored.dtype, device, {chunk.count, pitch});
  uint8_t* positive = mask_rows(masks, chunk, factored.dtype, D, device);
  DEEPCRF_LAUNCH_CUDA_ONLY(device, edge_hidden, view, factored, chunk, pitch, data, positive,
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
  void* out = untyped_output(losses, "losses", sums, device, {view.num_edges});
  DEEPCRF_LAUNCH_CUDA_ONLY(device, chunk_losses, view, dtype, num_labels, pitch, truth, chunk,
                           weight, table.untyped_output(), out, differentiate,
                           execution_context(num_threads, stream));
}

void reduce_edges(const py::tuple& graph, int64_t first_edge, const py::object& grad_hidden,
                  const py::object& masks, const py::object& grad_source,
                  const py::object& grad_target, int num_threads, uintptr_t stream) {
  const Tensor values(grad_hidden, "grad_hidden"), source(grad_source, "grad_source");
  const Device device = values.device();
  const DType dtype = values.dtype();
  const DType sums = accumulator_dtype(dtype);
  const GraphView view = graph_view(graph, device);
  source.expect_shape({view.num_nodes, -1});
  const int64_t N = view.num_nodes, D = source.size(1);
  const int64_t pitch = row_pitch(values, "grad_hidden", D);
  const EdgeChunk chunk = edge_chunk(first_edge, values.size(0), view.num_edges);
  const uint8_t* positive = mask_rows(masks, chunk, dtype, D, device);
  void* of_source = untyped_output(source, sums, device, {N, D});
  void* of_target = untyped_output(grad_target, "grad_target", sums, device, {N, D});
  DEEPCRF_LAUNCH_CUDA_ONLY(device, reduce_edges, view, dtype, D, chunk, pitch,
                           values.untyped_data(), positive, of_source, of_target,
                           execution_context(num_threads, stream));
}

}  // namespace

void bind_pairwise_nll_chunk(py::module_& module) {
  module.def("pack_weight", &pack_weight, py::arg("potential"), py::arg("num_nodes"),
             py::arg("rows"), py::arg("num_threads"), py::arg("stream"));
  module.def("unpack_weight", &unpack_weight, py::arg("rows"), py::arg("weight"), py::arg("bias"),
             py::arg("num_threads"), py::arg("stream"));
  module.def("edge_hidden", &edge_hidden, py::arg("graph"), py::arg("potential"),
             py::arg("first_edge"), py::arg("hidden"), py::arg("masks"), py::arg("num_threads"),
             py::arg("stream"));
  module.def("chunk_losses", &chunk_losses, py::arg("graph"), py::arg("labels"),
             py::arg("ignore_index"), py::arg("num_labels"), py::arg("first_edge"),
             py::arg("edge_weight"), py::arg("energies"), py::arg("losses"),
             py::arg("differentiate"), py::arg("num_threads"), py::arg("stream"));
  module.def("reduce_edges", &reduce_edges, py::arg("graph"), py::arg("first_edge"),
             py::arg("grad_hidden"), py::arg("masks"), py::arg("grad_source"),
             py::arg("grad_target"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
