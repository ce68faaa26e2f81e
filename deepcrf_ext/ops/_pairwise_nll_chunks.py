"""The piecewise loss of a factored potential on CUDA, a chunk of edges at a time.

The three products of a chunk run in the vendor's library; what stands between them is fused into
one kernel each. Works for any number of labels and features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend

CHUNK_BYTES = 32 << 20
"""Size of what exists of a chunk at a time: most of it stays in the L2 cache of a large GPU."""


def chunk_edges(num_labels: int, dim: int, element_size: int) -> int:
    """Edges of a chunk, whose energies, hidden vectors and their gradients fit CHUNK_BYTES."""
    return max(64, CHUNK_BYTES // ((num_labels**2 + 2 * dim) * element_size) // 64 * 64)


def losses_and_gradients(
    graph: tuple[Tensor, ...],
    potential: tuple[Tensor, ...],
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor | None,
    differentiate: bool = True,
) -> tuple[Tensor, ...]:
    """Losses [E] and, with ``differentiate``, the gradients of their weighted sum.

    Args:
        graph: the five tensors of a graph, contiguous.
        potential: source, target, weight and bias, contiguous and of one dtype.
        labels: int64 [N], contiguous.
        ignore_index: the label of nodes that drop out.
        edge_weight: [E], contiguous; None stands for ones.
        differentiate: whether the four gradients are wanted.

    Returns:
        The losses, then the gradients of source, target, weight and bias, in the potential's dtype.
    """
    source, target, weight, bias = potential
    num_edges, num_labels, dim = graph[1].shape[0], bias.shape[0], source.shape[1]
    rows, bias_row = weight.view(-1, dim), bias.view(-1)
    sums = torch.float64 if source.dtype == torch.float64 else torch.float32
    losses = source.new_empty(num_edges)
    gradients = [torch.zeros_like(t, dtype=sums) for t in (source, target, rows, bias_row)]
    size = min(num_edges, chunk_edges(num_labels, dim, source.element_size()))
    native, launch_args = _backend.native(), _backend.launch_args(source)
    with torch.autocast(source.device.type, enabled=False):  # else products come out rounded
        for first in range(0, num_edges, max(1, size)):
            count = min(size, num_edges - first)
            hidden = source.new_empty(count, dim)
            native.edge_hidden(graph, potential, first, hidden, *launch_args)
            energies = torch.addmm(bias_row, hidden, rows.t())
            native.chunk_losses(
                graph, labels, ignore_index, num_labels, first, edge_weight, energies, losses,
                differentiate, *launch_args,
            )  # fmt: skip
            if differentiate:
                grad_hidden = energies @ rows
                gradients[2] += energies.t() @ hidden
                gradients[3] += energies.sum(0, dtype=sums)
                native.reduce_edges(
                    graph, first, hidden, grad_hidden, gradients[0], gradients[1], *launch_args
                )
    if not differentiate:
        return (losses,)
    shaped = zip(gradients, potential, strict=True)
    return losses, *(g.to(source.dtype).view(p.shape) for g, p in shaped)
