#include "ops/dense_crf.h"

#include "core/lattice_embedding.h"
#include "cuda/lattice_filter.cuh"

namespace deepcrf::cuda {

namespace {

// What one kernel of the CRF adds to the negative energies of a position, at label k:
//   slice_scale * factor(k) * (sum of the blurred points around it)[k].
template <class T>
struct SliceTask {
  LatticeValues<T> values;
  const T* slice_scale;    // [N]
  T scale;                 // of the lattice
  int compatibility_dim;   // 0: Potts; 1: a diagonal; 2: a matrix, which the points have met
  const T* compatibility;  // [], [K] or [K, K]

  // Those of the labels from `first` on, of `count` in all.
  __device__ void factors(int first, int count, T (&values)[kVector<T>]) const {
    const T same = compatibility_dim == 0 ? scale * compatibility[0] : scale;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      values[j] = same;
      if (compatibility_dim == 1) values[j] *= -compatibility[min(first + j, count - 1)];
    }
  }
};
template <class T>
struct SliceTasks {
  int count;
  SliceTask<T> tasks[kMaxLattices];
};

// The rows of positions: [N, width] each, padded labels hold -inf in logits and 0 in marginals.
template <class T>
struct UpdateRows {
  const T* unary;    // [K, N], read in the first update alone, else null
  T* logits;         // [N, width], negative energies, which the first update writes
  const T* partial;  // [N, width], the logits with the messages of kernels before; may be logits
  T* rows;           // [N, width], marginals, or partial logits where more kernels follow
  bool more_follow;
  T* marginals;  // [K, N], written in the last update alone, else null
  bool log;      // write their logarithms
};

template <class T, int kGroup>
__device__ T group_max(T value) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// One vector of the logits of a position.
template <class T>
__device__ void vector_of_logits(const SliceTasks<T>& tasks, const UpdateRows<T>& rows,
                                 int64_t num_values, int64_t n, int v, const RowShape<T>& shape,
                                 T (&logits)[kVector<T>]) {
  const int first_label = v * kVector<T>;
  if (rows.unary != nullptr) {
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const int label = first_label + j;
      logits[j] = label < shape.num_channels ? -rows.unary[label * num_values + n] : -INFINITY;
    }
    store_vector(rows.logits + n * shape.width(), v, logits);
  } else {
    load_vector(rows.partial + n * shape.width(), v, logits);
  }
  for (int i = 0; i < tasks.count; ++i) {
    const SliceTask<T>& task = tasks.tasks[i];
    T sum[kVector<T>] = {};
    slice_vector(task.values, n, v, shape.width(), sum);
    const T scale = task.slice_scale[n];
    T factors[kVector<T>];
    task.factors(first_label, shape.num_channels, factors);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      if (first_label + j < shape.num_channels) logits[j] += scale * factors[j] * sum[j];
    }
  }
}

// Slices, and the softmax of the sums. One group of kGroup threads a position; a row of several
// vectors a thread waits in `rows` between the passes over it.
template <class T, int kGroup, bool kOneVector>
__global__ void update_kernel(const __grid_constant__ SliceTasks<T> tasks, UpdateRows<T> rows,
                              int64_t num_values, RowShape<T> shape) {
  wait_for_former_kernels();
  constexpr int kGroupsPerWarp = kWarpSize / kGroup;
  const int64_t warps = ceil_div<int64_t>(num_values, kGroupsPerWarp);
  const int lane = lane_index() % kGroup;
  for (int64_t warp = first_warp(); warp < warps; warp += num_warps()) {
    const int64_t n = warp * kGroupsPerWarp + lane_index() / kGroup;
    const int vectors = n < num_values ? shape.vectors : 0;
    T* row = rows.rows + n * shape.width();
    T values[kVector<T>];

    T highest = -INFINITY;
    for (int v = lane; v < vectors; v += kGroup) {
      vector_of_logits(tasks, rows, num_values, n, v, shape, values);
      if (!kOneVector || rows.more_follow) store_vector(row, v, values);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) highest = values[j] > highest ? values[j] : highest;
    }
    if (rows.more_follow) continue;
    highest = group_max<T, kGroup>(highest);

    T total = 0;
    for (int v = lane; v < vectors; v += kGroup) {
      if (!kOneVector) load_vector(row, v, values);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        const T logit = values[j] - highest;
        const T exponent = exponential(logit);
        values[j] = rows.log ? logit : exponent;
        total += exponent;
      }
      if (!kOneVector) store_vector(row, v, values);
    }
    total = warp_sum<kGroup>(total);
    const T factor = rows.log ? 1 : 1 / total;
    const T shift = rows.log ? logarithm(total) : 0;

    for (int v = lane; v < vectors; v += kGroup) {
      if (!kOneVector) load_vector(row, v, values);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        const int label = v * kVector<T> + j;
        values[j] = values[j] * factor - shift;
        if (rows.marginals != nullptr && label < shape.num_channels) {
          rows.marginals[label * num_values + n] = values[j];
        }
      }
      if (rows.marginals == nullptr) store_vector(row, v, values);
    }
  }
}

// weights[i] = the weight of sorted corner i times the scale of its position.
template <class T>
__global__ void scale_weights_kernel(PermutohedralLattice lattice,
                                     const T* splat_scale,  // [N]
                                     T* weights) {          // [P]
  const int64_t count = lattice.num_pairs();
  for (int64_t i = first_thread(); i < count; i += num_threads()) {
    weights[i] = splat_scale[lattice.splat_positions[i]] * static_cast<T>(lattice.splat_weights[i]);
  }
}

// The compatibility as the points meet it: negative, transposed, padded with zeros.
template <class T>
__global__ void transpose_kernel(const T* compatibility,  // [K, K]
                                 RowShape<T> shape,
                                 T* matrix) {  // [K, width]
  const int64_t width = shape.width();
  for (int64_t i = first_thread(); i < shape.num_channels * width; i += num_threads()) {
    const int64_t j = i / width, k = i % width;
    matrix[i] = k < shape.num_channels ? -compatibility[k * shape.num_channels + j] : T(0);
  }
}

// to = from . matrix for every point. One group a point.
template <class T>
__global__ void mix_labels_kernel(const int32_t* num_points,  // [1]
                                  const T* from,              // [M, width]
                                  const T* matrix,            // [K, width]
                                  RowShape<T> shape,
                                  T* to) {  // [M, width]
  wait_for_former_kernels();
  const int32_t count = *num_points;
  for (int64_t point = shape.first_row(); point < count; point += shape.num_rows()) {
    const T* input = from + point * shape.width();
    for (int v = shape.first_vector(); v < shape.vectors; v += shape.group_size()) {
      T sum[kVector<T>] = {};
#pragma unroll 4
      for (int j = 0; j < shape.num_channels; ++j) {
        T column[kVector<T>];
        load_vector(matrix + j * shape.width(), v, column);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) sum[i] += input[j] * column[i];
      }
      store_vector(to + point * shape.width(), v, sum);
    }
  }
}

// One kernel of the CRF with the values on its lattice.
template <class T>
struct KernelValues {
  const DenseKernel<PermutohedralLattice>* kernel;
  LatticeValues<T> values;
  T* weights;  // [P], of the splat
  T* matrix;   // [K, width], where the compatibility is a matrix

  KernelValues(Workspace& workspace, const DenseKernel<PermutohedralLattice>& kernel,
               const RowShape<T>& shape)
      : kernel(&kernel),
        values(workspace, kernel.lattice, shape),
        weights(workspace.take<T>(kernel.lattice.num_pairs())),
        matrix(has_matrix() ? workspace.take<T>(shape.num_channels * shape.width()) : nullptr) {}

  bool has_matrix() const { return kernel->compatibility_dim == 2; }

  SliceTask<T> slice_task() const {
    return {values, static_cast<const T*>(kernel->slice_scale),
            static_cast<T>(lattice_scale(kernel->lattice.num_dims)),
            static_cast<int>(kernel->compatibility_dim),
            static_cast<const T*>(kernel->compatibility)};
  }
};

template <class T>
class DenseMeanField {
 public:
  DenseMeanField(Workspace& workspace, const DenseKernels& kernels,
                 const DenseCRFArguments& arguments)
      : arguments_(arguments),
        shape_(arguments.num_labels),
        logits_(workspace.take<T>(arguments.num_values * shape_.width())),
        rows_(workspace.take<T>(arguments.num_values * shape_.width())) {
    for (const auto& kernel : kernels) kernels_.emplace_back(workspace, kernel, shape_);
  }

  void run(void* stream) {
    stream_ = stream;
    if (arguments_.iterations > 0) {
      for (KernelValues<T>& kernel : kernels_) prepare(kernel);
    }
    for (int64_t done = 0; done <= arguments_.iterations; ++done) {
      const size_t count = done == 0 ? 0 : kernels_.size();
      for (size_t first = 0; first < count; first += kMaxLattices) send(first);
      for (size_t first = 0; first == 0 || first < count; first += kMaxLattices) {
        update(done, first, count);
      }
    }
  }

 private:
  void prepare(const KernelValues<T>& values) {
    const int64_t P = values.kernel->lattice.num_pairs();
    launch("scale_weights", scale_weights_kernel<T>, grid_size(P, kThreadsPerBlock),
           kThreadsPerBlock, 0, stream_, values.kernel->lattice,
           static_cast<const T*>(values.kernel->splat_scale), values.weights);
    if (!values.has_matrix()) return;
    launch("transpose", transpose_kernel<T>,
           grid_size(shape_.num_channels * shape_.width(), kThreadsPerBlock), kThreadsPerBlock, 0,
           stream_, static_cast<const T*>(values.kernel->compatibility), shape_, values.matrix);
  }

  // The marginals in rows_ through the lattices of kernels first..first+kMaxLattices-1.
  void send(size_t first) {
    SplatTasks<T, T> tasks = {};
    LatticeValues<T>* values[kMaxLattices] = {};
    int count = 0;
    for (size_t i = first; i < kernels_.size() && count < kMaxLattices; ++i, ++count) {
      tasks.tasks[count] = {kernels_[i].values, kernels_[i].weights};
      values[count] = &kernels_[i].values;
    }
    splat(tasks, count, PositionRows<T>{rows_, shape_.width(), true}, shape_, stream_);
    blur(values, count, false, shape_, stream_);
    for (size_t i = first; i < first + count; ++i) {
      KernelValues<T>& own = kernels_[i];
      if (!own.has_matrix()) continue;
      launch_early("mix_labels", mix_labels_kernel<T>, shape_.point_grid(own.kernel->lattice),
                   kThreadsPerBlock, 0, stream_, own.kernel->lattice.num_points, own.values.points,
                   own.matrix, shape_, own.values.blurred);
      std::swap(own.values.points, own.values.blurred);
    }
  }

  void update(int64_t done, size_t first, size_t count) {
    SliceTasks<T> tasks = {};
    for (size_t i = first; i < count && tasks.count < kMaxLattices; ++i) {
      tasks.tasks[tasks.count++] = kernels_[i].slice_task();
    }
    const UpdateRows<T> rows = {
        done == 0 ? static_cast<const T*>(arguments_.unary) : nullptr,
        logits_,
        first == 0 ? logits_ : rows_,
        rows_,
        first + kMaxLattices < count,
        done == arguments_.iterations ? static_cast<T*>(arguments_.marginals) : nullptr,
        done == arguments_.iterations && arguments_.log};
    switch (shape_.group_bits) {
      case 0: return launch_update<1, true>(tasks, rows);
      case 1: return launch_update<2, true>(tasks, rows);
      case 2: return launch_update<4, true>(tasks, rows);
      case 3: return launch_update<8, true>(tasks, rows);
      case 4: return launch_update<16, true>(tasks, rows);
      default: break;
    }
    if (shape_.vectors <= kWarpSize) return launch_update<kWarpSize, true>(tasks, rows);
    launch_update<kWarpSize, false>(tasks, rows);
  }

  template <int kGroup, bool kOneVector>
  void launch_update(const SliceTasks<T>& tasks, const UpdateRows<T>& rows) {
    launch_early("update", update_kernel<T, kGroup, kOneVector>, shape_.grid(arguments_.num_values),
                 kThreadsPerBlock, 0, stream_, tasks, rows, arguments_.num_values, shape_);
  }

  DenseCRFArguments arguments_;
  RowShape<T> shape_;
  T* logits_;  // [N, width]
  T* rows_;    // [N, width]
  std::vector<KernelValues<T>> kernels_;
  void* stream_ = nullptr;
};

}  // namespace

int64_t dense_crf_workspace(const DenseKernels& kernels, const DenseCRFArguments& arguments) {
  Workspace workspace;
  dispatch_native_floating(arguments.dtype, "unary", [&](auto tag) {
    DenseMeanField<decltype(tag)>(workspace, kernels, arguments);
  });
  return workspace.used();
}

void dense_crf(const DenseKernels& kernels, const DenseCRFArguments& arguments,
               const ExecutionContext& ctx) {
  Workspace workspace(ctx.workspace, ctx.workspace_bytes);
  dispatch_native_floating(arguments.dtype, "unary", [&](auto tag) {
    DenseMeanField<decltype(tag)>(workspace, kernels, arguments).run(ctx.stream);
  });
}

}  // namespace deepcrf::cuda
