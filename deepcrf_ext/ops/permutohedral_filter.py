"""Operator `permutohedral_filter`: a Gaussian filter over points in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._registration import operator
from deepcrf_ext.ops._tensor_checks import check_device, check_floating, check_tensor

NUM_LATTICE_TENSORS = 7


def filter_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values are filtered: float64 stays, all others become float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class PermutohedralLattice:
    """The lattice around N points, built once, for any number of filters over them.

    Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.

    Args:
        features: the points, [N, d], floating point, in standard deviations of the Gaussian;
            1 <= d <= 255. They are placed in float32, without a gradient.

    Raises:
        TypeError, ValueError: `features` does not fit, is not finite or is too large to place; the
            message says so. On CUDA, where nothing waits for values, points that cannot be placed
            make NaN of what is filtered with them instead.
    """

    def __init__(self, features: Tensor) -> None:
        check_tensor("features", features, "N d", {})
        check_floating("features", features)
        self._build(features.detach().t())

    @classmethod
    def from_planes(cls, planes: Tensor) -> PermutohedralLattice:
        """The lattice of features given one dimension after another, float32 [d, N]."""
        lattice = cls.__new__(cls)
        lattice._build(planes)
        return lattice

    def _build(self, planes: Tensor) -> None:
        self.num_values = planes.shape[1]
        self.tensors: list[Tensor] = permutohedral_lattice(planes.to(torch.float32).contiguous())
        self._norms: dict[torch.dtype, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the lattice lies."""
        return self.tensors[0].device

    def filter(self, values: Tensor) -> Tensor:
        """As `permutohedral_filter(values, features)`."""
        check_tensor("values", values, "N C", {"N": self.num_values})
        check_floating("values", values)
        check_device("values", values.device, self.device, "the features")
        return permutohedral_apply(self.tensors, values, False)

    def norms(self, dtype: torch.dtype) -> Tensor:
        """The filter of ones, [N]: the weight every point gathers, itself included."""
        if dtype not in self._norms:
            ones = torch.ones((self.num_values, 1), dtype=dtype, device=self.device)
            self._norms[dtype] = permutohedral_apply(self.tensors, ones, False)[:, 0]
        return self._norms[dtype]


def permutohedral_filter(values: Tensor, features: Tensor) -> Tensor:
    """Sum the values of all points under a Gaussian of the distance of their features.

    Approximates ``Σ_q exp(-|f_p - f_q|² / 2) v_q``, p itself included, in time linear in N and d,
    on the permutohedral lattice (Adams, Baek and Davis 2010). The sum comes out up to a nearly
    constant factor, which is why it is mostly used divided by the filter of ones. To filter more
    than once with the same features, build a `PermutohedralLattice`.

    Args:
        values: [N, C], floating point. Differentiable, to any order.
        features: [N, d], 1 <= d <= 255, in standard deviations of the Gaussian: pixel positions
            divided by a width in pixels, voxel positions, colours. No gradient.

    Returns:
        [N, C] in the dtype of ``values``.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_tensor("features", features, "N d", {})
    check_tensor("values", values, "N C", {"N": features.shape[0]})
    return PermutohedralLattice(features).filter(values)


Shape = tuple[int | torch.SymInt, ...]


def _allocate(features: Tensor, arrays: Sequence[tuple[Shape, torch.dtype]]) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype, device=features.device) for shape, dtype in arrays]


def _cuda_arrays(features: Tensor) -> list[Tensor]:
    num_dims, num_values = features.shape
    size = num_dims + 1
    pairs = num_values * size
    arrays = _allocate(
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
    # The rows that no point has are never read, but what an operator returns must be defined.
    neighbours = torch.full((size, pairs, 2), -1, dtype=torch.int32, device=features.device)
    return [*arrays, neighbours]


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


def _fake_lattice(features: Tensor) -> list[Tensor]:
    if _backend.uses_cuda_kernels(features):
        return _cuda_arrays(features)
    context = torch.library.get_ctx()
    sizes = [context.new_dynamic_size(min=1) for _ in range(3)]
    return [*_position_arrays(features), *_sized_arrays(features, *sizes)]


@operator(fake=_fake_lattice)
def permutohedral_lattice(features: Tensor) -> list[Tensor]:
    """The lattice of features float32 [d, N], as the arrays of csrc/ops/permutohedral.h: those of
    cpu::PermutohedralLattice or of cuda::PermutohedralLattice."""
    native = _backend.native()
    num_threads, stream = _backend.launch_args(features)
    if _backend.uses_cuda_kernels(features):
        lattice = _cuda_arrays(features)
        native.permutohedral_lattice_cuda(
            features,
            tuple(lattice),
            workspace=_backend.workspace("permutohedral_lattice_workspace", features, features),
            num_threads=num_threads,
            stream=stream,
        )
        return lattice
    vertices, weights = _position_arrays(features)
    points = native.permutohedral_lattice(features, vertices, weights, num_threads, stream)
    sized = _sized_arrays(features, points.num_points, points.num_entries, points.num_block_offsets)
    block_offsets, entry_points, point_offsets, point_entries, neighbours = sized
    points.copy_to(block_offsets, entry_points, point_offsets, point_entries, neighbours.flatten())
    return [vertices, weights, *sized]


def _fake_apply(lattice: Sequence[Tensor], values: Tensor, transposed: bool) -> Tensor:
    return values.new_empty(values.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    lattice, _, ctx.transposed = inputs
    ctx.save_for_backward(*lattice)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    lattice = list(ctx.saved_tensors)
    return [None] * len(lattice), permutohedral_apply(lattice, grad, not ctx.transposed), None


@operator(fake=_fake_apply, backward=_backward, setup_context=_setup)
def permutohedral_apply(lattice: Sequence[Tensor], values: Tensor, transposed: bool) -> Tensor:
    """Filter values [N, C] on a lattice, or apply the transpose of that filter."""
    prepared = values.to(filter_dtype(values.dtype)).contiguous()
    filtered = torch.empty_like(prepared)
    workspace = _backend.workspace(
        "permutohedral_filter_workspace", prepared, tuple(lattice), prepared, filtered
    )
    _backend.native().permutohedral_filter(
        tuple(lattice),
        prepared,
        transposed,
        filtered,
        workspace,
        *_backend.launch_args(prepared),
    )
    return filtered.to(values.dtype)
