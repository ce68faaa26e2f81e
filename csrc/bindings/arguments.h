// Graphs and potentials as the Python operators pass them: tuples of tensors, in a fixed order.
#pragma once

#include "bindings/tensor.h"
#include "core/graph_view.h"
#include "ops/factored_potential.h"
#include "ops/pairwise_nll.h"
#include "ops/table_potential.h"

namespace deepcrf {

inline void expect_count(const py::tuple& tensors, size_t count, const char* name) {
  DEEPCRF_CHECK(tensors.size() == count, name, ": got ", tensors.size(), " tensors, must be ",
                count);
}

// (row_offsets, targets, reverse_row_offsets, reverse_sources, reverse_edges, sources)
inline GraphView graph_view(const py::tuple& tensors, const Device& device) {
  expect_count(tensors, 6, "graph");
  const Tensor row_offsets(tensors[0], "row_offsets");
  const Tensor targets(tensors[1], "targets");
  const Tensor reverse_row_offsets(tensors[2], "reverse_row_offsets");
  const Tensor reverse_sources(tensors[3], "reverse_sources");
  const Tensor reverse_edges(tensors[4], "reverse_edges");
  const Tensor sources(tensors[5], "sources");
  row_offsets.expect_device(device).expect_shape({-1});
  targets.expect_device(device).expect_shape({-1});
  const int64_t num_offsets = row_offsets.size(0);
  const int64_t num_edges = targets.size(0);
  DEEPCRF_CHECK(num_offsets > 0, "row_offsets: got shape [0], must be [N + 1]");
  reverse_row_offsets.expect_device(device).expect_shape({num_offsets});
  reverse_sources.expect_device(device).expect_shape({num_edges});
  reverse_edges.expect_device(device).expect_shape({num_edges});
  sources.expect_device(device).expect_shape({num_edges});
  return {num_offsets - 1,
          num_edges,
          row_offsets.data<int64_t>(),
          targets.data<int32_t>(),
          reverse_row_offsets.data<int64_t>(),
          reverse_sources.data<int32_t>(),
          reverse_edges.data<int64_t>(),
          sources.data<int32_t>()};
}

// The setting of torch.set_float32_matmul_precision.
inline MatmulPrecision matmul_precision(const std::string& name) {
  if (name == "highest") return MatmulPrecision::highest;
  if (name == "high") return MatmulPrecision::high;
  DEEPCRF_CHECK(name == "medium", "precision: got '", name,
                "', must be 'highest', 'high' or 'medium'");
  return MatmulPrecision::medium;
}

// A tensor of a dtype, device and shape, as an untyped pointer.
inline const void* untyped(const Tensor& tensor, DType dtype, const Device& device,
                           std::initializer_list<int64_t> sizes) {
  return tensor.expect_device(device).expect_shape(sizes).expect_dtype(dtype).untyped_data();
}
inline const void* untyped(const py::object& object, const char* name, DType dtype,
                           const Device& device, std::initializer_list<int64_t> sizes) {
  return untyped(Tensor(object, name), dtype, device, sizes);
}

// The same of a tensor that a kernel writes.
inline void* untyped_output(const Tensor& tensor, DType dtype, const Device& device,
                            std::initializer_list<int64_t> sizes) {
  return tensor.expect_device(device).expect_shape(sizes).expect_dtype(dtype).untyped_output();
}
inline void* untyped_output(const py::object& object, const char* name, DType dtype,
                            const Device& device, std::initializer_list<int64_t> sizes) {
  return untyped_output(Tensor(object, name), dtype, device, sizes);
}

// (source, target, weight, bias)
inline AnyFactoredPotential factored_potential(const py::tuple& tensors, int64_t num_nodes) {
  expect_count(tensors, 4, "potential");
  const Tensor source(tensors[0], "source");
  const Tensor bias(tensors[3], "bias");
  source.expect_shape({num_nodes, -1});
  bias.expect_shape({-1, -1});
  const DType dtype = source.dtype();
  const Device& device = source.device();
  const int64_t K = bias.size(0);
  const int64_t D = source.size(1);
  DEEPCRF_CHECK(K > 0 && D > 0, "potential: got K = ", K, ", D = ", D, ", must be positive");
  return {dtype,
          K,
          D,
          source.untyped_data(),
          untyped(tensors[1], "target", dtype, device, {num_nodes, D}),
          untyped(tensors[2], "weight", dtype, device, {K, K, D}),
          untyped(bias, dtype, device, {K, K})};
}

// (grad_source, grad_target, grad_weight, grad_bias), in the accumulator of the potential
inline AnyFactoredGradient factored_gradient(const py::tuple& tensors,
                                             const AnyFactoredPotential& potential,
                                             int64_t num_nodes, const Device& device) {
  expect_count(tensors, 4, "gradient");
  const DType dtype = accumulator_dtype(potential.dtype);
  const int64_t K = potential.num_labels;
  const int64_t D = potential.num_features;
  return {untyped_output(tensors[0], "grad_source", dtype, device, {num_nodes, D}),
          untyped_output(tensors[1], "grad_target", dtype, device, {num_nodes, D}),
          untyped_output(tensors[2], "grad_weight", dtype, device, {K, K, D}),
          untyped_output(tensors[3], "grad_bias", dtype, device, {K, K})};
}

inline AnyTablePotential table_potential(const py::object& energies, int64_t num_edges) {
  const Tensor tensor(energies, "energies");
  tensor.expect_shape({num_edges, -1, -1});
  const int64_t K = tensor.size(1);
  DEEPCRF_CHECK(K > 0, "energies: got K = 0, must be positive");
  tensor.expect_shape({num_edges, K, K});
  return {tensor.dtype(), K, tensor.untyped_data()};
}

inline EdgeLabels edge_labels(const py::object& labels, int64_t ignore_index, int64_t num_nodes,
                              const Device& device) {
  const Tensor tensor(labels, "labels");
  tensor.expect_device(device).expect_shape({num_nodes});
  return {tensor.data<int64_t>(), ignore_index};
}

// None stands for weights of one.
inline const void* optional_edge_weight(const py::object& edge_weight, DType dtype,
                                        const Device& device, int64_t num_edges) {
  if (edge_weight.is_none()) return nullptr;
  return untyped(edge_weight, "edge_weight", dtype, device, {num_edges});
}

}  // namespace deepcrf
