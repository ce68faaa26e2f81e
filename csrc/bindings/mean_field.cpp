#include "ops/mean_field.h"

#include "bindings/arguments.h"

namespace deepcrf {

namespace {

struct MeanFieldCall {
  Device device;
  std::vector<GraphView> graphs;
  std::vector<AnyFactoredPotential> potentials;
  MeanFieldArguments arguments;
};

MeanFieldCall checked_call(const py::list& graphs, const py::list& potentials,
                           const py::object& unary, int64_t iterations, const py::object& marginals,
                           const std::string& precision) {
  const Tensor energies(unary, "unary");
  energies.expect_shape({-1, -1});
  const Device device = energies.device();
  const DType dtype = energies.dtype();  // the accumulator of every potential's
  const int64_t N = energies.size(0), K = energies.size(1);
  DEEPCRF_CHECK(graphs.size() == potentials.size(), "potentials: got ", potentials.size(),
                ", must be as many as graphs, ", graphs.size());
  DEEPCRF_CHECK(iterations >= 0, "iterations: got ", iterations, ", must not be negative");
  std::vector<GraphView> views;
  std::vector<AnyFactoredPotential> factored;
  for (size_t i = 0; i < graphs.size(); ++i) {
    views.push_back(graph_view(graphs[i].cast<py::tuple>(), device));
    DEEPCRF_CHECK(views[i].num_nodes == N, "graphs[", i, "]: got ", views[i].num_nodes,
                  " nodes, must be ", N);
    factored.push_back(factored_potential(potentials[i].cast<py::tuple>(), N));
    DEEPCRF_CHECK(factored[i].dtype == factored[0].dtype && factored[i].num_labels == K,
                  "potentials[", i, "]: got dtype ", dtype_name(factored[i].dtype),
                  ", K = ", factored[i].num_labels, ", must be ", dtype_name(factored[0].dtype),
                  ", ", K);
  }
  const DType potential_dtype = factored.empty() ? dtype : factored[0].dtype;
  const MeanFieldArguments arguments = {
      potential_dtype,
      N,
      K,
      iterations,
      untyped(energies, accumulator_dtype(potential_dtype), device, {N, K}),
      untyped_output(marginals, "marginals", dtype, device, {N, K}),
      matmul_precision(precision)};
  return {device, views, factored, arguments};
}

void mean_field(const py::list& graphs, const py::list& potentials, const py::object& unary,
                int64_t iterations, const py::object& marginals, const std::string& precision,
                const py::object& allocate, int num_threads, uintptr_t stream) {
  const MeanFieldCall call =
      checked_call(graphs, potentials, unary, iterations, marginals, precision);
  const ScratchContext ctx(
      num_threads, stream, call.device, allocate,
      DEEPCRF_WORKSPACE(call.device, mean_field, call.graphs, call.potentials, call.arguments));
  DEEPCRF_LAUNCH(call.device, mean_field, call.graphs, call.potentials, call.arguments, ctx);
}

}  // namespace

void bind_mean_field(py::module_& module) {
  module.def("mean_field", &mean_field, py::arg("graphs"), py::arg("potentials"), py::arg("unary"),
             py::arg("iterations"), py::arg("marginals"), py::arg("precision"), py::arg("allocate"),
             py::arg("num_threads"), py::arg("stream"));
}

}  // namespace deepcrf
