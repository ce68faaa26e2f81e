"""Operator `permutohedral_filter`: a Gaussian filter over points in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._autocast import accumulate_dtype
from deepcrf_ext.ops._data_dependent import in_one_graph
from deepcrf_ext.ops._device_cache import is_capturing, keep_for_stream
from deepcrf_ext.ops._func_transforms import wants_gradient
from deepcrf_ext.ops._registration import operator
from deepcrf_ext.ops._tensor_checks import check_device, check_floating, check_tensor

NUM_LATTICE_TENSORS = 7
MAX_DIMS = 255  # kMaxLatticeDims
LATTICE_BYTES = 24  # about, of each of the d + 1 corners around a point


class PermutohedralLattice:
    """The lattice around N points, built once, for any number of filters over them.

    Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.

    Args:
        features: the points, [N, d], floating point, in standard deviations of the Gaussian;
            1 <= d <= 255. They are placed in float32. What is filtered has a gradient in them where
            they want one (see `permutohedral_filter`).

    Raises:
        TypeError, ValueError: `features` does not fit, is not finite or is too large to place; the
            message says so. On CUDA, where values are not looked at, points that cannot be placed
            make NaN of what is filtered with them instead.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> lattice = dc.PermutohedralLattice(torch.tensor([[0.0], [0.0], [50.0]]))
        >>> sums = lattice.filter(torch.tensor([[1.0], [2.0], [4.0]]))
        >>> sums / lattice.filter(torch.ones(3, 1))  # means over near points
        tensor([[1.5000],
                [1.5000],
                [4.0000]])
    """

    def __init__(self, features: Tensor, _built: PermutohedralLattice | None = None) -> None:
        check_tensor("features", features, "N d", {})
        check_floating("features", features)
        planes = features.t()
        self.num_values = planes.shape[1]
        self.planes = planes if wants_gradient(planes) else None
        self.tensors: list[Tensor]
        self._norms: Tensor | None = None
        if _built is None:
            placed = planes.detach().to(torch.float32).contiguous()
            self.tensors = permutohedral_lattice(placed)
        else:
            self.tensors, self._norms = _built.tensors, _built._norms

    @classmethod
    def from_planes(cls, planes: Tensor) -> PermutohedralLattice:
        """The lattice of features given one dimension after another, [d, N]."""
        return cls(planes.t())

    def differentiable_in(self, planes: Tensor) -> PermutohedralLattice:
        """This lattice with a gradient in `planes`, [d', N]: some dimensions of its features."""
        return PermutohedralLattice(planes.t(), self)

    @property
    def device(self) -> torch.device:
        """Where the lattice lies."""
        return self.tensors[0].device

    def filter(self, values: Tensor) -> Tensor:
        """As `permutohedral_filter(values, features)`."""
        check_tensor("values", values, "N C", {"N": self.num_values})
        check_floating("values", values)
        check_device("values", values.device, self.device, "the features")
        keep_for_stream(self.tensors)
        return permutohedral_apply(self.tensors, values, False, self.planes)

    def norms(self, dtype: torch.dtype) -> Tensor:
        """The filter of ones, [N]: the weight every point gathers, itself included."""
        differentiable = self.planes is not None and torch.is_grad_enabled()
        if self._norms is not None and dtype == self._norms.dtype and not differentiable:
            return self._norms
        ones = torch.ones((self.num_values, 1), dtype=dtype, device=self.device)
        return permutohedral_apply(self.tensors, ones, False, self.planes)[:, 0]

    def keep_norms(self) -> None:
        """Makes the norms in float32 a part of the lattice, written when it is."""
        self._norms = self.norms(torch.float32)

    def kept_tensors(self) -> list[Tensor]:
        """The tensors of the lattice, those of `keep_norms` included."""
        return self.tensors if self._norms is None else [*self.tensors, self._norms]

    def __getstate__(self) -> dict[str, Any]:
        """Of copies: sending a tensor to another process moves its memory, which calls of
        `dense_crf` that share the lattice may be reading."""
        norms = None if self._norms is None else self._norms.clone()
        return {**vars(self), "tensors": [t.clone() for t in self.tensors], "_norms": norms}


@in_one_graph
def permutohedral_filter(values: Tensor, features: Tensor) -> Tensor:
    """Sum the values of all points under a Gaussian of the distance of their features.

    Approximates ``Σ_q exp(-|f_p - f_q|² / 2) v_q``, p itself included, in time linear in N on the
    permutohedral lattice (Adams, Baek and Davis 2010). The sum comes out up to a nearly constant
    factor (0.9, 0.84, 0.77 and 0.6 in 1, 2, 3 and 5 dimensions where points lie dense, less where
    they are few), which is why it is mostly used divided by the filter of ones. In d the time grows
    with d² (to filter) and d³ (to build the lattice) where no two points share a lattice point:
    it is meant for some tens of dimensions at most. To filter more than once with the same
    features, build a `PermutohedralLattice`.

    The gradient in the features is that of the Gaussian, its sums taken on the same lattice and
    so with the same factor: for a gradient ``g`` of the result, ``Σ_q (f_q - f_p) k_pq (g_p·v_q +
    g_q·v_p)``, which costs 2 (d + 1) filters of the values. The filter itself is interpolated
    linearly between the points of the lattice: over steps of such a cell its slope is, on average,
    0.9 of this gradient, as its kernel has lighter tails than a Gaussian of the same width.

    Args:
        values: [N, C], floating point. Differentiable, to any order.
        features: [N, d], 1 <= d <= 255, in standard deviations of the Gaussian: pixel positions
            divided by a width in pixels, voxel positions, colours. Differentiable.

    Returns:
        [N, C] in the dtype of ``values``. float64 is filtered in float64, other dtypes in float32.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> features = torch.tensor([[0.0], [1.0], [9.0]])
        >>> dc.permutohedral_filter(torch.ones(3, 1), features).shape
        torch.Size([3, 1])
    """
    check_tensor("features", features, "N d", {})
    check_tensor("values", values, "N C", {"N": features.shape[0]})
    return PermutohedralLattice(features).filter(values)


Shape = tuple[int | torch.SymInt, ...]


def _allocate(features: Tensor, arrays: Sequence[tuple[Shape, torch.dtype]]) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype, device=features.device) for shape, dtype in arrays]


def _cuda_arrays(features: Tensor) -> list[Tensor]:
    """Those whose sizes do not depend on the number of lattice points."""
    num_dims, num_values = features.shape
    size = num_dims + 1
    pairs = num_values * size
    return _allocate(
        features,
        [
            ((1,), torch.int32),
            ((num_values, size), torch.int32),
            ((num_values, size), torch.float32),
            ((pairs,), torch.int32),
            ((pairs,), torch.int32),
            ((pairs,), torch.float32),
        ],
    )


def _cuda_neighbours(features: Tensor, max_points: int | torch.SymInt) -> Tensor:
    # Rows that no point has are never read, but what an operator returns must be defined.
    shape = (features.shape[0] + 1, max_points, 2)
    return torch.full(shape, -1, dtype=torch.int32, device=features.device)


def _cuda_lattice(features: Tensor) -> list[Tensor]:
    native = _backend.native()
    num_threads, stream = _backend.launch_args(features)
    shared = {
        "workspace": _backend.allocator(features)(native.permutohedral_lattice_workspace(features)),
        "num_threads": num_threads,
        "stream": stream,
    }
    arrays = _cuda_arrays(features)
    unnumbered = (*arrays, _cuda_neighbours(features, 0))
    native.permutohedral_points_cuda(features, unnumbered, **shared)
    num_points, vertices = arrays[:2]
    max_points = vertices.numel() if is_capturing(features.device) else int(num_points)
    lattice = [*arrays, _cuda_neighbours(features, max_points)]
    native.permutohedral_lattice_cuda(tuple(lattice), **shared)
    return lattice


def _position_arrays(features: Tensor) -> list[Tensor]:
    num_dims, num_values = features.shape
    shape = (num_values, num_dims + 1)
    return _allocate(features, [(shape, torch.int16), (shape, torch.float32)])


def _sized_arrays(
    features: Tensor,
    num_points: int | torch.SymInt,
    num_entries: int | torch.SymInt,
    num_block_offsets: int | torch.SymInt,
) -> list[Tensor]:
    return _allocate(
        features,
        [
            ((num_block_offsets,), torch.int64),
            ((num_entries,), torch.int32),
            ((num_points + 1,), torch.int64),
            ((num_entries,), torch.int32),
            ((features.shape[0] + 1, num_points, 2), torch.int32),
        ],
    )


def _cpu_lattice(features: Tensor) -> list[Tensor]:
    native = _backend.native()
    num_threads, stream = _backend.launch_args(features)
    vertices, weights = _position_arrays(features)
    points = native.permutohedral_lattice(features, vertices, weights, num_threads, stream)
    sized = _sized_arrays(features, points.num_points, points.num_entries, points.num_block_offsets)
    block_offsets, entry_points, point_offsets, point_entries, neighbours = sized
    points.copy_to(block_offsets, entry_points, point_offsets, point_entries, neighbours.flatten())
    return [vertices, weights, *sized]


def _fake_lattice(features: Tensor) -> list[Tensor]:
    context = torch.library.get_ctx()
    if _backend.uses_cuda_kernels(features):
        max_points = context.new_dynamic_size(min=1)
        return [*_cuda_arrays(features), _cuda_neighbours(features, max_points)]
    sizes = [context.new_dynamic_size(min=1) for _ in range(3)]
    return [*_position_arrays(features), *_sized_arrays(features, *sizes)]


@operator(fake=_fake_lattice)
def permutohedral_lattice(features: Tensor) -> list[Tensor]:
    """The lattice of features float32 [d, N], as the arrays of csrc/ops/permutohedral.h: those of
    cpu::PermutohedralLattice or of cuda::PermutohedralLattice."""
    with torch.inference_mode(False):  # training may use it next
        cuda = _backend.uses_cuda_kernels(features)
        return _cuda_lattice(features) if cuda else _cpu_lattice(features)


def _fake_apply(
    lattice: Sequence[Tensor], values: Tensor, transposed: bool, planes: Tensor | None
) -> Tensor:
    return values.new_empty(values.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    lattice, values, ctx.transposed, planes = inputs
    ctx.has_planes = planes is not None
    ctx.save_for_backward(*lattice, *((values, planes) if ctx.has_planes else ()))


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: a checkpoint gives them no second time
    lattice = list(saved[:NUM_LATTICE_TENSORS])
    _, needs_values, _, needs_planes = ctx.needs_input_grad
    planes = grad_values = grad_planes = None
    if ctx.has_planes:
        values, planes = saved[NUM_LATTICE_TENSORS:]
        if needs_planes:
            grad_planes = _planes_gradient(lattice, values, grad, ctx.transposed, planes)
    if needs_values:
        grad_values = permutohedral_apply(lattice, grad, not ctx.transposed, planes)
    return None, grad_values, None, grad_planes


GRADIENT_CHANNELS = 48
"""About how many channels a filter of the gradient in the features has: bounds its memory."""


def _planes_gradient(
    lattice: list[Tensor], values: Tensor, grad: Tensor, transposed: bool, planes: Tensor
) -> Tensor:
    """Σ_j (f_j - f_i) k_ij (g_i·v_j + g_j·v_i) for every point i, [d', N] as the planes."""
    dtype = accumulate_dtype(values.dtype)
    features = planes.to(dtype).t()
    # Only differences count: near zero they keep more digits.
    features = features - features.detach().mean(0)
    num_channels = values.shape[1] * (1 + features.shape[1])
    slices = -(-num_channels // GRADIENT_CHANNELS)
    total = torch.zeros_like(features)
    for v, g in zip(
        values.to(dtype).chunk(slices, 1), grad.to(dtype).chunk(slices, 1), strict=True
    ):
        total = total + _shifts(lattice, v, g, transposed, features, planes)
        total = total + _shifts(lattice, g, v, not transposed, features, planes)
    return total.t().to(planes.dtype)


def _shifts(
    lattice: list[Tensor],
    sent: Tensor,
    received: Tensor,
    transposed: bool,
    features: Tensor,
    planes: Tensor,
) -> Tensor:
    """Σ_j (f_j - f_i) k_ij (received_i · sent_j), [N, d']: a filter of `sent` and its products."""
    products = torch.cat([sent[:, None], features[:, :, None] * sent[:, None]], 1)  # [N, 1 + d', c]
    filtered = permutohedral_apply(lattice, products.reshape(len(features), -1), transposed, planes)
    sums = (filtered.view(products.shape) * received[:, None]).sum(2)
    return sums[:, 1:] - features * sums[:, :1]


@operator(fake=_fake_apply, backward=_backward, setup_context=_setup)
def permutohedral_apply(
    lattice: Sequence[Tensor], values: Tensor, transposed: bool, planes: Tensor | None
) -> Tensor:
    """Filter values [N, C] on a lattice, or apply the transpose of that filter.

    `planes` [d', N] are those dimensions of the features that get a gradient, or None.
    """
    prepared = values.to(accumulate_dtype(values.dtype)).contiguous()
    filtered = torch.empty_like(prepared)
    _backend.native().permutohedral_filter(
        tuple(lattice),
        prepared,
        transposed,
        filtered,
        _backend.allocator(prepared),
        *_backend.launch_args(prepared),
    )
    return filtered.to(values.dtype)
