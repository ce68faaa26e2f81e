// The shim's own test kernels as a Python module.
#include "bindings/tensor.h"
#include "kernels.h"

namespace deepcrf {

namespace {

int columns_of(const Tensor& tensor) { return static_cast<int>(tensor.size(1)); }

void softmax(const py::object& input, const py::object& output) {
  const Tensor in(input, "input");
  cuda::softmax(in.data<float>(), Tensor(output, "output").output<float>(), in.size(0),
                columns_of(in));
}

void block_sum(const py::object& input, const py::object& output) {
  const Tensor in(input, "input");
  cuda::block_sum(in.data<float>(), Tensor(output, "output").output<float>(), in.size(0),
                  columns_of(in));
}

void matmul(const py::object& a, const py::object& b, const py::object& c) {
  const Tensor left(a, "a");
  const Tensor right(b, "b");
  cuda::matmul(left.data<bfloat16>(), right.data<bfloat16>(), Tensor(c, "c").output<float>(),
               static_cast<int>(left.size(0)), columns_of(right), columns_of(left));
}

void tf32_product(const py::object& a, const py::object& b, const py::object& c) {
  cuda::tf32_product(Tensor(a, "a").expect_shape({16, 8}).data<float>(),
                     Tensor(b, "b").expect_shape({8, 8}).data<float>(),
                     Tensor(c, "c").expect_shape({16, 8}).output<float>());
}

void last_block_sum(const py::object& input, const py::object& partial, const py::object& counter,
                    const py::object& output) {
  const Tensor in(input, "input");
  const Tensor parts(partial, "partial");
  cuda::last_block_sum(
      in.data<int32_t>(), parts.output<int32_t>(), Tensor(counter, "counter").output<int32_t>(),
      Tensor(output, "output").output<int32_t>(), in.size(0), static_cast<int>(parts.size(0)));
}

void vote(const py::object& input, const py::object& same, const py::object& ranks) {
  const Tensor in(input, "input");
  cuda::vote(in.data<int32_t>(), Tensor(same, "same").output<int32_t>(),
             Tensor(ranks, "ranks").output<int32_t>(), in.size(0));
}

void fault(const std::string& name, bool corrected, const py::object& input,
           const py::object& output) {
  const Tensor in(input, "input");
  const bool known =
      cuda::run_fault(name.c_str(), corrected, in.data<float>(),
                      Tensor(output, "output").output<float>(), static_cast<int>(in.size(0)));
  DEEPCRF_CHECK(known, "name: got ", name, ", must be the name of a planted fault");
}

}  // namespace

}  // namespace deepcrf

PYBIND11_MODULE(kernels_on_host, module) {
  using namespace deepcrf;
  module.def("softmax", &softmax);
  module.def("block_sum", &block_sum);
  module.def("matmul", &matmul);
  module.def("tf32_product", &tf32_product);
  module.def("last_block_sum", &last_block_sum);
  module.def("vote", &vote);
  module.def("fault", &fault);
}
