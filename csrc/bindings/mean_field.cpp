#include "ops/mean_field.h"

#include "bindings/arguments.h"

namespace deepcrf {

namespace {

void mean_field(const py::list& graphs, const py::list& potentials, const py::object& unary,
                int64_t iterations, const py::object& marginals, int num_threads,
                uintptr_t stream) {
  const Tensor energies(unary, "unary");
  energies.expect_shape({-1, -1});
  const Device device = energies.device();
  const DType dtype = energies.dtype();
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
    DEEPCRF_CHECK(factored[i].dtype == dtype && factored[i].num_labels == K, "potentials[", i,
                  "]: got dtype ", dtype_name(factored[i].dtype), ", K = ", factored[i].num_labels,
                  ", must be ", dtype_name(dtype), ", ", K);
  }
  const MeanFieldArguments arguments = {dtype,
                                        N,
                                        K,
                                        iterations,
                                        untyped(unary, "unary", dtype, device, {N, K}),
                                        untyped(marginals, "marginals", dtype, device, {N, K})};
  DEEPCRF_LAUNCH_CPU(device, mean_field, views, factored, arguments,
                     execution_context(num_threads, stream));
}

}  // namespace

void bind_mean_field(py::module_& module) {
  module.def("mean_field", &mean_field, py::arg("graphs"), py::arg("potentials"), py::arg("unary"),
             py::arg("iterations"), py::arg("marginals"), py::arg("num_threads"),
             py::arg("stream"));
}

}  // namespace deepcrf
