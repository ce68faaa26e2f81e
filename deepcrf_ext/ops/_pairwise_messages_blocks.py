"""The gradient of messages in a factored potential on CUDA, a block of nodes at a time.

With c_q = (Q_q, grad_q), the 2K coefficients that a neighbour brings, and (grad_p, Q_p) those of
the node itself, it is made of (csrc/cuda/pairwise_messages_block.cu)

    A_p[c] = Σ_q c_q[c] h_pq,            dL/dW = (grad, Q)ᵀ A,
    B_p    = (grad_p, Q_p) W,            dL/dh_pq = Σ_c c_q[c] B_p[c].

A and the sums of dL/dh over the edges of a node are formed on the tensor cores, but those of
float64, and of float32 under `torch.set_float32_matmul_precision("highest")`. The products with the
weight run in the vendor's library, as torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._autocast import accumulate_dtype
from deepcrf_ext.ops._products import padded, product, whole_sums

BLOCK_BYTES = 32 << 20
"""Size of A of a block of nodes: it stays in the L2 cache of a large GPU."""


def potential_gradients(
    graph: tuple[Tensor, ...],
    potential: tuple[Tensor, ...],
    marginals: Tensor,
    grad_messages: Tensor,
) -> list[Tensor]:
    """Gradients of source, target, weight and bias, in the dtype of the sums.

    Args:
        graph: the six tensors of a graph, contiguous.
        potential: source, target, weight and bias, contiguous and of one dtype.
        marginals: [N, K], contiguous, in the dtype of the sums: float32, or float64 for float64.
        grad_messages: [N, K], the gradient of the messages, likewise.
    """
    source, target, weight, bias = potential
    (num_nodes, dim), num_labels = source.shape, bias.shape[0]
    sums = accumulate_dtype(source.dtype)
    element = torch.bfloat16 if source.dtype == torch.bfloat16 else sums
    native, launch_args = _backend.native(), _backend.launch_args(source)

    precision = _backend.product_precision(source)
    columns = native.message_columns(source, num_labels, precision)
    coefficients = marginals.new_empty(num_nodes, columns, dtype=element)
    native.message_coefficients(
        source, marginals, grad_messages, precision, coefficients, *launch_args
    )
    ends = marginals.new_zeros((num_nodes, 2, padded(num_labels)), dtype=element)
    ends[:, 0, :num_labels] = grad_messages
    ends[:, 1, :num_labels] = marginals
    weights = [_rows(weight.to(element)), _rows(weight.to(element).transpose(0, 1))]

    grad_ends = [torch.empty_like(end, dtype=sums) for end in (source, target)]
    grad_rows = marginals.new_zeros(ends.shape[2], num_labels * dim)
    coefficient_sums = marginals.new_empty(num_nodes, 2 * num_labels)
    size = max(1, BLOCK_BYTES // (2 * num_labels * dim * ends.element_size()))
    with whole_sums(source.device):
        for first in range(0, num_nodes, size):
            block = slice(first, first + size)
            left = ends[block].flatten(0, 1)  # [2B, K]
            shape = (left.shape[0] // 2, 2 * num_labels, dim)
            aggregates = left.new_empty(shape)
            native.message_aggregates(
                graph, potential, first, coefficients, precision, aggregates,
                coefficient_sums[block], *launch_args,
            )  # fmt: skip
            grad_rows += product(left.t(), aggregates.view(left.shape[0], -1), sums)
            for of_targets, gradient in enumerate(grad_ends):
                projections = (left @ weights[of_targets]).view(shape)
                native.message_node_gradient(
                    graph, potential, first, coefficients, precision, projections,
                    bool(of_targets), gradient, *launch_args,
                )  # fmt: skip
        whole = torch.stack([grad_messages, marginals], 1).flatten(0, 1)  # [2N, K]
        grad_bias = whole.t() @ coefficient_sums.view(-1, num_labels)
    return [*grad_ends, grad_rows[:num_labels].reshape(weight.shape), grad_bias]


def _rows(weight: Tensor) -> Tensor:
    """[K, K, D] as [K, K · D], with rows of zeros up to a padded number."""
    num_labels = weight.shape[0]
    rows = weight.new_zeros(padded(num_labels), weight[0].numel())
    rows[:num_labels] = weight.reshape(num_labels, -1)
    return rows
