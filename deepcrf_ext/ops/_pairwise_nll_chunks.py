"""The piecewise loss of a factored potential on CUDA, a chunk of edges at a time.

The three products of a chunk run in the vendor's library; what stands between them is fused into
one kernel each. Rows are padded, as the library's fast products need, and hold a one beside the
hidden vector: products with [weight | bias] then do the bias and its gradient too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._autocast import accumulate_dtype
from deepcrf_ext.ops._products import padded, product, whole_sums

CHUNK_BYTES = 64 << 20
"""Size of what exists of a chunk at a time: much of it stays in the L2 cache of a large GPU, and
its kernels run for longer than the host takes to launch them."""


def chunk_edges(num_labels: int, dim: int, element_size: int) -> int:
    """Edges of a chunk, whose energies and hidden vectors, or the gradient of these, fit
    CHUNK_BYTES."""
    return max(64, CHUNK_BYTES // ((num_labels**2 + dim) * element_size) // 64 * 64)


def losses_and_gradients(
    graph: tuple[Tensor, ...],
    potential: tuple[Tensor, ...],
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Losses [E] and, with ``differentiate``, the gradients of their weighted sum.

    Energies are formed in the dtype of the potential, as by a matrix product: in float16 they must
    stay below 65,504.

    Args:
        graph: the six tensors of a graph, contiguous.
        potential: source, target, weight and bias, contiguous and of one dtype.
        labels: int64 [N], contiguous.
        ignore_index: the label of nodes that drop out.
        edge_weight: [E], contiguous, in the dtype of the sums; None stands for ones.
        differentiate: whether the four gradients are wanted.

    Returns:
        The losses, and the gradients of source, target, weight and bias, in the dtype of the sums:
        float32, or float64 for float64.
    """
    source, _, weight, bias = potential
    num_edges, num_labels, dim = graph[1].shape[0], bias.shape[0], source.shape[1]
    pairs = num_labels**2
    sums = accumulate_dtype(source.dtype)
    losses = source.new_empty(num_edges, dtype=sums)
    if num_edges == 0:
        gradients = [torch.zeros_like(tensor, dtype=sums) for tensor in potential]
        return losses, gradients if differentiate else []
    native, launch_args = _backend.native(), _backend.launch_args(source)
    rows = weight.new_empty(padded(pairs), padded(dim + 1))
    native.pack_weight(potential, source.shape[0], rows, *launch_args)
    grad_source, grad_target, grad_weight, grad_bias = (
        torch.empty_like(tensor, dtype=sums) for tensor in potential
    )
    grad_rows: Tensor | None = None
    size = min(num_edges, chunk_edges(num_labels, dim, source.element_size()))
    # Where hidden vectors are positive, a bit each; those of the last chunk may be fewer.
    mask_bytes = -(-dim * source.element_size() // 16)
    masks = source.new_empty(size, mask_bytes, dtype=torch.uint8)
    with whole_sums(source.device):
        for first in range(0, num_edges, size):
            hidden = source.new_empty(min(size, num_edges - first), rows.shape[1])
            native.edge_hidden(graph, potential, first, hidden, masks, *launch_args)
            energies = hidden @ rows.t()
            native.chunk_losses(
                graph, labels, ignore_index, num_labels, first, edge_weight, energies, losses,
                differentiate, *launch_args,
            )  # fmt: skip
            if differentiate:
                term = product(energies.t(), hidden, sums)
                grad_rows = term if grad_rows is None else grad_rows.add_(term)
                del hidden  # its gradient takes its memory
                grad_hidden = energies @ rows[:, : padded(dim)]
                native.reduce_edges(
                    graph, first, grad_hidden, masks, grad_source, grad_target, *launch_args
                )
                del grad_hidden
            del energies
    if grad_rows is None:
        return losses, []
    native.unpack_weight(grad_rows, grad_weight, grad_bias, *launch_args)
    return losses, [grad_source, grad_target, grad_weight, grad_bias]
