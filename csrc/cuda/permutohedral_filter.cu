#include "core/lattice_embedding.h"
#include "cuda/lattice_filter.cuh"

namespace deepcrf::cuda {

namespace {

// One group a position.
template <class T>
__global__ void slice_kernel(LatticeValues<T> values, T factor, RowShape<T> shape, bool aligned,
                             T* filtered) {  // [N, C]
  const int64_t num_values = values.lattice.num_values;
  for (int64_t n = shape.first_row(); n < num_values; n += shape.num_rows()) {
    for (int v = shape.first_vector(); v < shape.vectors; v += shape.group_size()) {
      T sum[kVector<T>] = {};
      slice_vector(values, n, v, shape.width(), sum);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) sum[j] *= factor;
      const int64_t channel = v * kVector<T>;
      store_values(filtered + n * shape.num_channels + channel, shape.num_channels - channel,
                   aligned, sum);
    }
  }
}

}  // namespace

int64_t permutohedral_filter_workspace(const PermutohedralLattice& lattice, DType dtype,
                                       int64_t num_channels) {
  Workspace workspace;
  dispatch_native_floating(dtype, "values", [&](auto tag) {
    using T = decltype(tag);
    LatticeValues<T>(workspace, lattice, RowShape<T>(num_channels));
  });
  return workspace.used();
}

void permutohedral_filter(const PermutohedralLattice& lattice, DType dtype, int64_t num_channels,
                          const void* values, bool transposed, void* filtered,
                          const ExecutionContext& ctx) {
  dispatch_native_floating(dtype, "values", [&](auto tag) {
    using T = decltype(tag);
    const RowShape<T> shape(num_channels);
    const T* input = static_cast<const T*>(values);
    T* output = static_cast<T*>(filtered);
    const bool whole = num_channels % kVector<T> == 0;
    Workspace memory(ctx.workspace, ctx.workspace_bytes);
    LatticeValues<T> state(memory, lattice, shape);
    splat(SplatTasks<T, float>{{{state, lattice.splat_weights}}}, 1,
          PositionRows<T>{input, num_channels, whole && is_aligned(input, kVector<T>)}, shape,
          ctx.stream);
    LatticeValues<T>* states[] = {&state};
    blur(states, 1, transposed, shape, ctx.stream);
    launch("slice", slice_kernel<T>, shape.grid(lattice.num_values), kThreadsPerBlock, 0,
           ctx.stream, state, static_cast<T>(lattice_scale(lattice.num_dims)), shape,
           whole && is_aligned(output, kVector<T>), output);
  });
}

}  // namespace deepcrf::cuda
