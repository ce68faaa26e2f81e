"""How operators see graphs and potentials: flat tuples of contiguous tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops.graph import EdgeGraph
from deepcrf_ext.ops.potentials import FactoredPotential

FactoredTensors = tuple[Tensor, Tensor, Tensor, Tensor]


def graph_tensors(graph: EdgeGraph) -> list[Tensor]:
    """The five tensors of a graph, in the order the compiled extension takes them."""
    return [
        graph.row_offsets,
        graph.targets,
        graph.reverse_row_offsets,
        graph.reverse_sources,
        graph.reverse_edges,
    ]


def factored_tensors(potential: FactoredPotential) -> FactoredTensors:
    """The four tensors of a factored potential, in the order the compiled extension takes them."""
    return potential.source, potential.target, potential.weight, potential.bias


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of a kernel's results: CPU kernels do not round them to bfloat16."""
    if tensor.dtype == torch.bfloat16 and not _backend.uses_cuda_kernels(tensor):
        return torch.float32
    return tensor.dtype


def prepare(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, contiguous and in `compute_dtype`."""
    return tuple(tensor.to(compute_dtype(tensor)).contiguous() for tensor in tensors)


def contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, contiguous: for kernels that read bfloat16 themselves."""
    return tuple(tensor.contiguous() for tensor in tensors)


def prepare_graph(graph: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors of a graph, contiguous."""
    return contiguous(*graph)


def empty_gradients(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Uninitialised gradients of contiguous tensors, in `compute_dtype`."""
    return tuple(torch.empty_like(tensor, dtype=compute_dtype(tensor)) for tensor in tensors)
