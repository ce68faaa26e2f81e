#include "ops/pairwise_messages_block.h"

#include "bindings/arguments.h"

namespace deepcrf {

namespace {

int64_t num_columns(DType dtype, MatmulPrecision precision, int64_t num_labels) {
  return DEEPCRF_CUDA_VALUE(message_aggregates, message_columns, dtype, precision, num_labels);
}

// What both steps are given: `matrix`, A or B, says which nodes the block holds.
struct BlockCall {
  Device device;
  GraphView graph;
  AnyFactoredPotential potential;
  MatmulPrecision precision;
  NodeBlock block;
  const void* coefficients;
  void* matrix;
  DType sums;

  BlockCall(const py::tuple& graph_tensors, const py::tuple& potential_tensors,
            const std::string& precision_name, int64_t first_node,
            const py::object& coefficient_rows, const py::object& matrix_object, const char* name)
      : device(Tensor(potential_tensors[0], "source").device()),
        graph(graph_view(graph_tensors, device)),
        potential(factored_potential(potential_tensors, graph.num_nodes)),
        precision(matmul_precision(precision_name)),
        sums(accumulator_dtype(potential.dtype)) {
    const Tensor given(matrix_object, name);
    const int64_t K = potential.num_labels, N = graph.num_nodes;
    const DType element = block_dtype(potential.dtype);
    matrix = untyped_output(given, element, device, {-1, 2 * K, potential.num_features});
    block = {first_node, given.size(0)};
    DEEPCRF_CHECK(0 <= first_node && first_node + block.count <= N, name, ": got nodes ",
                  first_node, "..", first_node + block.count - 1, ", must be among ", N);
    coefficients = untyped(coefficient_rows, "coefficients", element, device,
                           {N, num_columns(potential.dtype, precision, K)});
  }
};

int64_t message_columns(const py::object& source, int64_t num_labels,
                        const std::string& precision) {
  return num_columns(Tensor(source, "source").dtype(), matmul_precision(precision), num_labels);
}

void message_coefficients(const py::object& source, const py::object& marginals,
                          const py::object& grad_messages, const std::string& precision_name,
                          const py::object& coefficients, int num_threads, uintptr_t stream) {
  const Tensor potential(source, "source");
  const Tensor values(marginals, "marginals");
  const Device device = potential.device();
  const DType dtype = potential.dtype(), sums = accumulator_dtype(dtype);
  const MatmulPrecision precision = matmul_precision(precision_name);
  values.expect_shape({potential.size(0), -1});
  const int64_t N = values.size(0), K = values.size(1);
  const void* of_marginals = untyped(values, sums, device, {N, K});
  const void* of_gradient = untyped(grad_messages, "grad_messages", sums, device, {N, K});
  void* out = untyped_output(coefficients, "coefficients", block_dtype(dtype), device,
                             {N, num_columns(dtype, precision, K)});
  DEEPCRF_LAUNCH_CUDA_ONLY(device, message_coefficients, dtype, precision, N, K, of_marginals,
                           of_gradient, out, execution_context(num_threads, stream));
}

void message_aggregates(const py::tuple& graph, const py::tuple& potential, int64_t first_node,
                        const py::object& coefficients, const std::string& precision,
                        const py::object& aggregates, const py::object& coefficient_sums,
                        int num_threads, uintptr_t stream) {
  const BlockCall call(graph, potential, precision, first_node, coefficients, aggregates,
                       "aggregates");
  void* sums = untyped_output(coefficient_sums, "coefficient_sums", call.sums, call.device,
                              {call.block.count, 2 * call.potential.num_labels});
  DEEPCRF_LAUNCH_CUDA_ONLY(call.device, message_aggregates, call.graph, call.potential,
                           call.precision, call.block, call.coefficients, call.matrix, sums,
                           execution_context(num_threads, stream));
}

void message_node_gradient(const py::tuple& graph, const py::tuple& potential, int64_t first_node,
                           const py::object& coefficients, const std::string& precision,
                           const py::object& projections, bool of_targets,
                           const py::object& gradient, int num_threads, uintptr_t stream) {
  const BlockCall call(graph, potential, precision, first_node, coefficients, projections,
                       "projections");
  void* out = untyped_output(gradient, "gradient", call.sums, call.device,
                             {call.graph.num_nodes, call.potential.num_features});
  DEEPCRF_LAUNCH_CUDA_ONLY(call.device, message_node_gradient, call.graph, call.potential,
                           call.precision, call.block, call.coefficients, call.matrix, of_targets,
                           out, execution_context(num_threads, stream));
}

}  // namespace

void bind_pairwise_messages_block(py::module_& module) {
  module.def("message_columns", &message_columns, py::arg("source"), py::arg("num_labels"),
             py::arg("precision"));
  module.def("message_coefficients", &message_coefficients, py::arg("source"), py::arg("marginals"),
             py::arg("grad_messages"), py::arg("precision"), py::arg("coefficients"),
             py::arg("num_threads"), py::arg("stream"));
  module.def("message_aggregates", &message_aggregates, py::arg("graph"), py::arg("potential"),
             py::arg("first_node"), py::arg("coefficients"), py::arg("precision"),
             py::arg("aggregates"), py::arg("coefficient_sums"), py::arg("num_threads"),
             py::arg("stream"));
  module.def("message_node_gradient", &message_node_gradient, py::arg("graph"),
             py::arg("potential"), py::arg("first_node"), py::arg("coefficients"),
             py::arg("precision"), py::arg("projections"), py::arg("of_targets"),
             py::arg("gradient"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
