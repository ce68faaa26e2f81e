"""How operators see graphs and potentials: flat lists of tensors.

All that lies at nodes and edges (unary energies, marginals, messages, losses) goes in and out of
kernels in the dtype that they sum in, as do the gradients of factored potentials: what is yet to be
scaled or summed is not rounded, and float16 does not overflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._autocast import accumulate_dtype, autocast_dtype
from deepcrf_ext.ops.graph import EdgeGraph
from deepcrf_ext.ops.potentials import Potential, TablePotential

HALVES = (torch.bfloat16, torch.float16)


def graph_tensors(graph: EdgeGraph) -> list[Tensor]:
    """The six tensors of a graph, in the order the compiled extension takes them."""
    return [
        graph.row_offsets,
        graph.targets,
        graph.reverse_row_offsets,
        graph.reverse_sources,
        graph.reverse_edges,
        graph.sources,
    ]


def potential_tensors(potential: Potential) -> list[Tensor]:
    """Source, target, weight and bias, in the autocast dtype if there is one; or a table alone."""
    if isinstance(potential, TablePotential):
        return [potential.table]
    tensors = [potential.source, potential.target, potential.weight, potential.bias]
    dtype = autocast_dtype(potential.device)
    if dtype is None or potential.dtype in (dtype, torch.float64):
        return tensors
    return [tensor.to(dtype) for tensor in tensors]


def prepare(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors as most kernels read them: contiguous, on the CPU without halves."""
    widen = tensors[0].dtype in HALVES and not _backend.uses_cuda_kernels(tensors[0])
    if widen:
        tensors = [tensor.to(torch.float32) for tensor in tensors]
    return tuple([tensor.contiguous() for tensor in tensors])  # a generator is slower


def prepare_potential(potential: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`prepare` of a potential: halves stay in a table, and where matrix tiles read them."""
    if len(potential) == 1 or tiles_read(potential[0].dtype):
        return tuple([tensor.contiguous() for tensor in potential])
    return prepare(potential)


def tiles_read(dtype: torch.dtype) -> bool:
    """Whether kernels of the CPU read factored potentials of this dtype, a half, as it is."""
    return dtype in HALVES and _backend.has_tiles()


def prepare_values(values: Tensor) -> Tensor:
    """Values at nodes or edges as kernels read them."""
    return values.to(accumulate_dtype(values.dtype)).contiguous()


def empty_values(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    """Uninitialised values at nodes or edges, for a kernel that reads `like`."""
    return like.new_empty(shape, dtype=accumulate_dtype(like.dtype))


def empty_gradients(potential: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialised gradients of a potential as kernels write them: see csrc/ops/pairwise_nll.h."""
    dtype = potential[0].dtype
    if len(potential) == 4:  # that of a table is as large as nothing else
        dtype = accumulate_dtype(dtype)
    return [tensor.new_empty(tensor.shape, dtype=dtype) for tensor in potential]


def rounded(gradients: Sequence[Tensor], potential: Sequence[Tensor]) -> list[Tensor]:
    """Gradients in the dtype of what they are the gradients of."""
    return [g.to(p.dtype) for g, p in zip(gradients, potential, strict=True)]
