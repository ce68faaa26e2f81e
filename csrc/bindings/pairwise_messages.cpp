#include "ops/pairwise_messages.h"

#include "bindings/arguments.h"

namespace deepcrf {

namespace {

MessageGradientArguments gradient_arguments(const py::object& marginals,
                                            const py::object& grad_messages, DType dtype,
                                            const Device& device, int64_t N, int64_t K,
                                            MatmulPrecision precision) {
  const int64_t M = Tensor(marginals, "marginals").expect_shape({-1, N, K}).size(0);
  return {M, untyped(marginals, "marginals", dtype, device, {M, N, K}),
          untyped(grad_messages, "grad_messages", dtype, device, {M, N, K}), precision};
}

void pairwise_messages_factored(const py::tuple& graph, const py::tuple& potential,
                                const py::object& marginals, const py::object& messages,
                                const std::string& precision, const py::object& allocate,
                                int num_threads, uintptr_t stream) {
  const Device device = Tensor(marginals, "marginals").device();
  const GraphView view = graph_view(graph, device);
  const AnyFactoredPotential factored = factored_potential(potential, view.num_nodes);
  const int64_t N = view.num_nodes, K = factored.num_labels;
  const DType dtype = accumulator_dtype(factored.dtype);
  const MessageArguments arguments = {untyped(marginals, "marginals", dtype, device, {N, K}),
                                      untyped_output(messages, "messages", dtype, device, {N, K}),
                                      matmul_precision(precision)};
  const ScratchContext ctx(
      num_threads, stream, device, allocate,
      DEEPCRF_WORKSPACE(device, pairwise_messages_factored, view, factored, arguments));
  DEEPCRF_LAUNCH(device, pairwise_messages_factored, view, factored, arguments, ctx);
}

void pairwise_messages_factored_backward(const py::tuple& graph, const py::tuple& potential,
                                         const py::object& marginals,
                                         const py::object& grad_messages, const py::tuple& gradient,
                                         const std::string& precision, int num_threads,
                                         uintptr_t stream) {
  const Device device = Tensor(marginals, "marginals").device();
  const GraphView view = graph_view(graph, device);
  const AnyFactoredPotential factored = factored_potential(potential, view.num_nodes);
  const int64_t N = view.num_nodes;
  const MessageGradientArguments arguments =
      gradient_arguments(marginals, grad_messages, accumulator_dtype(factored.dtype), device, N,
                         factored.num_labels, matmul_precision(precision));
  const AnyFactoredGradient out = factored_gradient(gradient, factored, N, device);
  DEEPCRF_LAUNCH_CPU_ONLY(device, pairwise_messages_factored_backward, view, factored, arguments,
                          out, execution_context(num_threads, stream));
}

void pairwise_messages_table(const py::tuple& graph, const py::object& energies,
                             const py::object& marginals, const py::object& messages,
                             const py::object& allocate, int num_threads, uintptr_t stream) {
  const Device device = Tensor(marginals, "marginals").device();
  const GraphView view = graph_view(graph, device);
  const AnyTablePotential table = table_potential(energies, view.num_edges);
  const int64_t N = view.num_nodes, K = table.num_labels;
  const DType dtype = accumulator_dtype(table.dtype);
  const MessageArguments arguments = {untyped(marginals, "marginals", dtype, device, {N, K}),
                                      untyped_output(messages, "messages", dtype, device, {N, K}),
                                      MatmulPrecision::highest};
  const ScratchContext ctx(
      num_threads, stream, device, allocate,
      DEEPCRF_WORKSPACE(device, pairwise_messages_table, view, table, arguments));
  DEEPCRF_LAUNCH(device, pairwise_messages_table, view, table, arguments, ctx);
}

void pairwise_messages_table_backward(const py::tuple& graph, const py::object& energies,
                                      const py::object& marginals, const py::object& grad_messages,
                                      const py::object& grad_energies, int num_threads,
                                      uintptr_t stream) {
  const Device device = Tensor(marginals, "marginals").device();
  const GraphView view = graph_view(graph, device);
  const AnyTablePotential table = table_potential(energies, view.num_edges);
  const int64_t K = table.num_labels;
  const MessageGradientArguments arguments =
      gradient_arguments(marginals, grad_messages, accumulator_dtype(table.dtype), device,
                         view.num_nodes, K, MatmulPrecision::highest);
  void* out =
      untyped_output(grad_energies, "grad_energies", table.dtype, device, {view.num_edges, K, K});
  DEEPCRF_LAUNCH(device, pairwise_messages_table_backward, view, table, arguments, out,
                 execution_context(num_threads, stream));
}

}  // namespace

void bind_pairwise_messages(py::module_& module) {
  module.def("pairwise_messages_factored", &pairwise_messages_factored, py::arg("graph"),
             py::arg("potential"), py::arg("marginals"), py::arg("messages"), py::arg("precision"),
             py::arg("allocate"), py::arg("num_threads"), py::arg("stream"));
  module.def("pairwise_messages_factored_backward", &pairwise_messages_factored_backward,
             py::arg("graph"), py::arg("potential"), py::arg("marginals"), py::arg("grad_messages"),
             py::arg("gradient"), py::arg("precision"), py::arg("num_threads"), py::arg("stream"));
  module.def("pairwise_messages_table", &pairwise_messages_table, py::arg("graph"),
             py::arg("energies"), py::arg("marginals"), py::arg("messages"), py::arg("allocate"),
             py::arg("num_threads"), py::arg("stream"));
  module.def("pairwise_messages_table_backward", &pairwise_messages_table_backward,
             py::arg("graph"), py::arg("energies"), py::arg("marginals"), py::arg("grad_messages"),
             py::arg("grad_energies"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
