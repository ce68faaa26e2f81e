// The one header that knows what a torch.Tensor looks like: its attributes, read through pybind11.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <string>
#include <vector>

#include "core/checks.h"
#include "core/context.h"
#include "core/dtypes.h"
#include "core/huge_pages.h"
#ifdef DEEPCRF_WITH_CUDA
#include "cuda/runtime.h"
#endif

namespace deepcrf {

namespace py = pybind11;

struct Device {
  bool is_cuda;
  int index;

  bool operator==(const Device& other) const {
    return is_cuda == other.is_cuda && index == other.index;
  }
  std::string name() const { return is_cuda ? concatenate("cuda:", index) : "cpu"; }
};

// The DType of a torch.dtype object, of which there is one each; false where there is none.
inline bool find_dtype(const py::handle& object, DType* found) {
  constexpr std::array kDTypes = {DType::float32, DType::int64,    DType::int32,
                                  DType::float64, DType::bfloat16, DType::float16,
                                  DType::uint8,   DType::int16,    DType::boolean};
  static const auto objects = [&] {
    const py::module_ torch = py::module_::import("torch");
    std::array<py::handle, kDTypes.size()> handles;
    for (size_t i = 0; i < kDTypes.size(); ++i) {
      handles[i] =
          py::object(torch.attr(dtype_name(kDTypes[i]))).release();  // torch keeps them for ever
    }
    return handles;
  }();
  for (size_t i = 0; i < kDTypes.size(); ++i) {
    if (objects[i].ptr() == object.ptr()) {
      *found = kDTypes[i];
      return true;
    }
  }
  return false;
}

// The names that are read from every tensor.
struct TensorAttributes {
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* get_device = PyUnicode_InternFromString("get_device");
  PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* is_cuda = PyUnicode_InternFromString("is_cuda");
  PyObject* shape = PyUnicode_InternFromString("shape");

  static const TensorAttributes& names() {
    static const TensorAttributes interned;
    return interned;
  }

  static py::object get(const py::handle& object, PyObject* name) {
    return checked(PyObject_GetAttr(object.ptr(), name));
  }
  static py::object call(const py::handle& object, PyObject* name) {
    return checked(PyObject_CallMethodObjArgs(object.ptr(), name, nullptr));
  }

 private:
  static py::object checked(PyObject* value) {
    if (value == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  }
};

// A tensor argument: its name, and checks that name it. Valid while the Python object lives.
class Tensor {
 public:
  Tensor(const py::handle& tensor, const char* name) : name_(name) {
    const TensorAttributes& names = TensorAttributes::names();
    DEEPCRF_CHECK(PyObject_HasAttr(tensor.ptr(), names.data_ptr) == 1, name_, ": got ",
                  std::string(py::str(py::type::handle_of(tensor))), ", must be a torch.Tensor");
    const bool is_cuda = TensorAttributes::get(tensor, names.is_cuda).ptr() == Py_True;
    DEEPCRF_CHECK(is_cuda || TensorAttributes::get(tensor, names.is_cpu).ptr() == Py_True, name_,
                  ": got ", std::string(py::str(tensor.attr("device"))),
                  ", must be on a cpu or cuda device");
    device_ = {is_cuda, is_cuda ? TensorAttributes::call(tensor, names.get_device).cast<int>() : 0};
    dtype_object_ = TensorAttributes::get(tensor, names.dtype);
    const py::tuple shape = TensorAttributes::get(tensor, names.shape);
    shape_.reserve(shape.size());
    for (const py::handle size : shape) shape_.push_back(PyLong_AsLongLong(size.ptr()));
    DEEPCRF_CHECK(TensorAttributes::call(tensor, names.is_contiguous).ptr() == Py_True, name_,
                  ": got other strides, must be contiguous");
    data_ = PyLong_AsVoidPtr(TensorAttributes::call(tensor, names.data_ptr).ptr());
  }

  const Device& device() const { return device_; }
  int64_t size(size_t dimension) const { return shape_.at(dimension); }
  int64_t numel() const {
    return std::accumulate(shape_.begin(), shape_.end(), int64_t{1}, std::multiplies<>());
  }

  DType dtype() const {
    DType dtype;
    if (find_dtype(dtype_object_, &dtype)) return dtype;
    throw Error(concatenate(name_, ": got ", std::string(py::str(dtype_object_)),
                            ", must have a supported dtype"));
  }

  const Tensor& expect_device(const Device& device) const {
    DEEPCRF_CHECK(device_ == device, name_, ": got ", device_.name(), ", must be on ",
                  device.name());
    return *this;
  }

  // A size of -1 stands for any.
  const Tensor& expect_shape(std::initializer_list<int64_t> sizes) const {
    bool same = sizes.size() == shape_.size();
    size_t dimension = 0;
    for (int64_t size : sizes) {
      same = same && (size < 0 || size == shape_[dimension]);
      ++dimension;
    }
    DEEPCRF_CHECK(same, name_, ": got shape ", format_shape(shape_), ", must be ",
                  format_shape(sizes));
    return *this;
  }

  const Tensor& expect_dtype(DType wanted) const {
    DEEPCRF_CHECK(dtype() == wanted, name_, ": got ", std::string(py::str(dtype_object_)),
                  ", must be ", dtype_name(wanted));
    return *this;
  }

  const void* untyped_data() const { return data_; }

  template <class T>
  const T* data() const {
    expect_dtype(DTypeOf<T>::value);
    return static_cast<const T*>(data_);
  }

  // What a kernel writes.
  void* untyped_output() const {
    if (device_.is_cuda) return data_;
    advise_huge_pages(data_, dtype_size(dtype()) * numel());
    return data_;
  }

  template <class T>
  T* output() const {
    expect_dtype(DTypeOf<T>::value);
    return static_cast<T*>(untyped_output());
  }

 private:
  template <class Sizes>
  static std::string format_shape(const Sizes& sizes) {
    std::string text;
    for (int64_t size : sizes) {
      text += (text.empty() ? "" : ", ") + (size < 0 ? std::string("any") : std::to_string(size));
    }
    return "[" + text + "]";
  }

  const char* name_;
  Device device_;
  py::object dtype_object_;
  std::vector<int64_t> shape_;
  void* data_;
};

inline ExecutionContext execution_context(int num_threads, uintptr_t stream) {
  DEEPCRF_CHECK(num_threads > 0, "num_threads: got ", num_threads, ", must be positive");
  return {num_threads, reinterpret_cast<void*>(stream), nullptr, 0};
}

inline ExecutionContext execution_context(int num_threads, uintptr_t stream,
                                          const py::object& workspace, const Device& device) {
  ExecutionContext ctx = execution_context(num_threads, stream);
  const Tensor tensor(workspace, "workspace");
  tensor.expect_device(device).expect_shape({-1});
  ctx.workspace = tensor.output<uint8_t>();
  ctx.workspace_bytes = tensor.size(0);
  return ctx;
}

// The context of a call with scratch memory: of the tensor that `allocate`, a Python function,
// makes of a number of bytes. It lives as long as this.
class ScratchContext {
 public:
  ScratchContext(int num_threads, uintptr_t stream, const Device& device,
                 const py::object& allocate, int64_t bytes)
      : context_(execution_context(num_threads, stream)) {
    if (bytes == 0) return;
    memory_ = allocate(bytes);
    context_ = execution_context(num_threads, stream, memory_, device);
  }

  operator const ExecutionContext&() const { return context_; }

 private:
  py::object memory_;
  ExecutionContext context_;
};

// What CUDA tensors meet in a build without CUDA.
template <class... Arguments>
[[noreturn]] int64_t refuse_cuda(const char* op, const Arguments&...) {
  throw BackendError(
      concatenate(op,
                  ": got CUDA tensors, but deepcrf_ext was built without CUDA; install nvcc "
                  "and run 'DEEPCRF_CUDA=on pip install -e .' in the checkout"));
}

}  // namespace deepcrf

// Runs cpu::op(...) or cuda::op(...), by device, without the GIL.
#define DEEPCRF_LAUNCH(device, op, ...)               \
  do {                                                \
    const ::pybind11::gil_scoped_release without_gil; \
    if (DEEPCRF_ON_CUDA(device)) {                    \
      DEEPCRF_LAUNCH_CUDA(device, op, __VA_ARGS__);   \
    } else {                                          \
      ::deepcrf::cpu::op(__VA_ARGS__);                \
    }                                                 \
  } while (false)

#if defined(DEEPCRF_CUDA_ON_HOST)  // CUDA sources compiled for the host: they take CPU tensors
#define DEEPCRF_ON_CUDA(device) true
#define DEEPCRF_MAKE_CURRENT(device) static_cast<void>(device)
#define DEEPCRF_LAUNCH_CUDA(device, op, ...) ::deepcrf::cuda::op(__VA_ARGS__)
#elif defined(DEEPCRF_WITH_CUDA)
#define DEEPCRF_ON_CUDA(device) (device).is_cuda
#define DEEPCRF_MAKE_CURRENT(device) const ::deepcrf::cuda::DeviceGuard on_device((device).index)
#define DEEPCRF_LAUNCH_CUDA(device, op, ...) \
  DEEPCRF_MAKE_CURRENT(device);              \
  ::deepcrf::cuda::op(__VA_ARGS__)
#else
#define DEEPCRF_ON_CUDA(device) (device).is_cuda
#define DEEPCRF_MAKE_CURRENT(device) static_cast<void>(device)
#define DEEPCRF_LAUNCH_CUDA(device, op, ...) ::deepcrf::refuse_cuda(#op, __VA_ARGS__)
#endif

// For calls whose arguments differ by device: runs cpu::op(...), without the GIL.
#define DEEPCRF_LAUNCH_CPU_ONLY(device, op, ...)                                      \
  do {                                                                                \
    DEEPCRF_CHECK(!DEEPCRF_ON_CUDA(device), #op ": got tensors on ", (device).name(), \
                  ", must be on the CPU");                                            \
    const ::pybind11::gil_scoped_release without_gil;                                 \
    ::deepcrf::cpu::op(__VA_ARGS__);                                                  \
  } while (false)

// The same for cuda::op(...).
#define DEEPCRF_LAUNCH_CUDA_ONLY(device, op, ...)                                    \
  do {                                                                               \
    DEEPCRF_CHECK(DEEPCRF_ON_CUDA(device), #op ": got tensors on ", (device).name(), \
                  ", must be on a CUDA device");                                     \
    const ::pybind11::gil_scoped_release without_gil;                                \
    DEEPCRF_LAUNCH_CUDA(device, op, __VA_ARGS__);                                    \
  } while (false)

// The value of cuda::function(...), a function of an operator that runs on the host.
#if defined(DEEPCRF_CUDA_ON_HOST) || defined(DEEPCRF_WITH_CUDA)
#define DEEPCRF_CUDA_VALUE(op, function, ...) ::deepcrf::cuda::function(__VA_ARGS__)
#else
#define DEEPCRF_CUDA_VALUE(op, function, ...) ::deepcrf::refuse_cuda(#op, __VA_ARGS__)
#endif

// The bytes of scratch memory of cuda::op(...).
#define DEEPCRF_CUDA_WORKSPACE(op, ...) DEEPCRF_CUDA_VALUE(op, op##_workspace, __VA_ARGS__)

// The same of op(...) by device; on the CPU none.
#define DEEPCRF_WORKSPACE(device, op, ...)          \
  [&]() -> int64_t {                                \
    if (!DEEPCRF_ON_CUDA(device)) return 0;         \
    DEEPCRF_MAKE_CURRENT(device);                   \
    return DEEPCRF_CUDA_WORKSPACE(op, __VA_ARGS__); \
  }()
