#include "ops/pairwise_nll.h"

#include "bindings/arguments.h"

namespace deepcrf {

namespace {

void pairwise_nll_factored(const py::tuple& graph, const py::tuple& potential,
                           const py::object& labels, int64_t ignore_index, const py::object& losses,
                           const std::string& precision, int num_threads, uintptr_t stream) {
  const Device device = Tensor(losses, "losses").device();
  const GraphView view = graph_view(graph, device);
  const AnyFactoredPotential factored = factored_potential(potential, view.num_nodes);
  const EdgeLabels truth = edge_labels(labels, ignore_index, view.num_nodes, device);
  const DType dtype = accumulator_dtype(factored.dtype);
  void* out = untyped_output(losses, "losses", dtype, device, {view.num_edges});
  DEEPCRF_LAUNCH_CPU_ONLY(device, pairwise_nll_factored, view, factored,
                          matmul_precision(precision), truth, out,
                          execution_context(num_threads, stream));
}

void pairwise_nll_factored_backward(const py::tuple& graph, const py::tuple& potential,
                                    const py::object& labels, int64_t ignore_index,
                                    const py::object& edge_weight, const py::object& losses,
                                    const py::tuple& gradient, const std::string& precision,
                                    int num_threads, uintptr_t stream) {
  const Device device = Tensor(losses, "losses").device();
  const GraphView view = graph_view(graph, device);
  const AnyFactoredPotential factored = factored_potential(potential, view.num_nodes);
  const EdgeLabels truth = edge_labels(labels, ignore_index, view.num_nodes, device);
  const DType dtype = accumulator_dtype(factored.dtype);
  const void* weight = optional_edge_weight(edge_weight, dtype, device, view.num_edges);
  void* out = untyped_output(losses, "losses", dtype, device, {view.num_edges});
  const AnyFactoredGradient gradients =
      factored_gradient(gradient, factored, view.num_nodes, device);
  DEEPCRF_LAUNCH_CPU_ONLY(device, pairwise_nll_factored_backward, view, factored,
                          matmul_precision(precision), truth, weight, out, gradients,
                          execution_context(num_threads, stream));
}

void pairwise_nll_table(const py::tuple& graph, const py::object& energies,
                        const py::object& labels, int64_t ignore_index, const py::object& losses,
                        int num_threads, uintptr_t stream) {
  const Device device = Tensor(losses, "losses").device();
  const GraphView view = graph_view(graph, device);
  const AnyTablePotential table = table_potential(energies, view.num_edges);
  const EdgeLabels truth = edge_labels(labels, ignore_index, view.num_nodes, device);
  const DType dtype = accumulator_dtype(table.dtype);
  void* out = untyped_output(losses, "losses", dtype, device, {view.num_edges});
  DEEPCRF_LAUNCH(device, pairwise_nll_table, view, table, truth, out,
                 execution_context(num_threads, stream));
}

void pairwise_nll_table_backward(const py::tuple& graph, const py::object& energies,
                                 const py::object& labels, int64_t ignore_index,
                                 const py::object& edge_weight, const py::object& losses,
                                 const py::object& grad_energies, int num_threads,
                                 uintptr_t stream) {
  const Device device = Tensor(losses, "losses").device();
  const GraphView view = graph_view(graph, device);
  const AnyTablePotential table = table_potential(energies, view.num_edges);
  const EdgeLabels truth = edge_labels(labels, ignore_index, view.num_nodes, device);
  const DType dtype = accumulator_dtype(table.dtype);
  const void* weight = optional_edge_weight(edge_weight, dtype, device, view.num_edges);
  void* out = untyped_output(losses, "losses", dtype, device, {view.num_edges});
  void* gradient = untyped_output(grad_energies, "grad_energies", table.dtype, device,
                                  {view.num_edges, table.num_labels, table.num_labels});
  DEEPCRF_LAUNCH(device, pairwise_nll_table_backward, view, table, truth, weight, out, gradient,
                 execution_context(num_threads, stream));
}

void reduce_losses(const py::tuple& graph, const py::object& labels, int64_t ignore_index,
                   const py::object& losses, bool mean, const py::object& value,
                   const py::object& factor, const py::object& allocate, int num_threads,
                   uintptr_t stream) {
  const Tensor of_edges(losses, "losses");
  const Device device = of_edges.device();
  const DType dtype = of_edges.dtype();
  const GraphView view = graph_view(graph, device);
  of_edges.expect_shape({view.num_edges});
  const EdgeLabels truth = edge_labels(labels, ignore_index, view.num_nodes, device);
  void* out = untyped_output(value, "value", dtype, device, {});
  void* scale = untyped_output(factor, "factor", dtype, device, {});
  const ScratchContext ctx(num_threads, stream, device, allocate,
                           DEEPCRF_WORKSPACE(device, reduce_losses, view.num_edges));
  DEEPCRF_LAUNCH(device, reduce_losses, view, truth, dtype, of_edges.untyped_data(), mean, out,
                 scale, ctx);
}

void scale_arrays(const py::list& from, const py::list& factors, const py::list& to,
                  int num_threads, uintptr_t stream) {
  DEEPCRF_CHECK(factors.size() == 2, "factors: got ", factors.size(), ", must be 2");
  const Tensor first(factors[0], "factors");
  const Device device = first.device();
  const DType sums = first.dtype();
  first.expect_shape({});
  const void* second = untyped(factors[1], "factors", sums, device, {});
  DEEPCRF_CHECK(from.size() == to.size() && from.size() <= ScaledArrays::kMost, "from: got ",
                from.size(), " arrays, must be at most ", ScaledArrays::kMost, ", as many as `to`");
  ScaledArrays arrays = {};
  DType dtype = sums;
  for (; arrays.count < static_cast<int>(from.size()); ++arrays.count) {
    const Tensor input(from[arrays.count], "from"), output(to[arrays.count], "to");
    if (arrays.count == 0) dtype = output.dtype();
    input.expect_device(device).expect_dtype(sums);
    output.expect_device(device).expect_dtype(dtype);
    DEEPCRF_CHECK(input.numel() == output.numel(), "to: got ", output.numel(),
                  " elements, must be ", input.numel());
    arrays.arrays[arrays.count] = {input.untyped_data(), output.untyped_output(), input.numel()};
  }
  DEEPCRF_CHECK(sums == accumulator_dtype(dtype), "factors: got ", dtype_name(sums), ", must be ",
                dtype_name(accumulator_dtype(dtype)));
  DEEPCRF_LAUNCH_CUDA_ONLY(device, scale_arrays, arrays, dtype, first.untyped_data(), second,
                           execution_context(num_threads, stream));
}

}  // namespace

void bind_pairwise_nll(py::module_& module) {
  module.def("reduce_losses", &reduce_losses, py::arg("graph"), py::arg("labels"),
             py::arg("ignore_index"), py::arg("losses"), py::arg("mean"), py::arg("value"),
             py::arg("factor"), py::arg("allocate"), py::arg("num_threads"), py::arg("stream"));
  module.def("pairwise_nll_factored", &pairwise_nll_factored, py::arg("graph"),
             py::arg("potential"), py::arg("labels"), py::arg("ignore_index"), py::arg("losses"),
             py::arg("precision"), py::arg("num_threads"), py::arg("stream"));
  module.def("pairwise_nll_factored_backward", &pairwise_nll_factored_backward, py::arg("graph"),
             py::arg("potential"), py::arg("labels"), py::arg("ignore_index"),
             py::arg("edge_weight"), py::arg("losses"), py::arg("gradient"), py::arg("precision"),
             py::arg("num_threads"), py::arg("stream"));
  module.def("pairwise_nll_table", &pairwise_nll_table, py::arg("graph"), py::arg("energies"),
             py::arg("labels"), py::arg("ignore_index"), py::arg("losses"), py::arg("num_threads"),
             py::arg("stream"));
  module.def("pairwise_nll_table_backward", &pairwise_nll_table_backward, py::arg("graph"),
             py::arg("energies"), py::arg("labels"), py::arg("ignore_index"),
             py::arg("edge_weight"), py::arg("losses"), py::arg("grad_energies"),
             py::arg("num_threads"), py::arg("stream"));
  module.def("scale_arrays", &scale_arrays, py::arg("from"), py::arg("factors"), py::arg("to"),
             py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
