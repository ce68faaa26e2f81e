"""Operator `mean_field`: parallel mean-field inference over pairwise potentials."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._argument_checks import check_unary, checked_iterations
from deepcrf_ext.ops._autocast import accumulate_dtype, result_dtype
from deepcrf_ext.ops._flat_tensors import (
    HALVES,
    empty_values,
    graph_tensors,
    potential_tensors,
    prepare,
    prepare_products,
    tiles_read,
)
from deepcrf_ext.ops._func_transforms import wants_gradient
from deepcrf_ext.ops._registration import operator
from deepcrf_ext.ops.pairwise_messages import messages
from deepcrf_ext.ops.potentials import Potential

_GRAPH_TENSORS = 6
_POTENTIAL_TENSORS = 4


def mean_field(unary: Tensor, potentials: Sequence[Potential], iterations: int = 2) -> Tensor:
    """Approximate marginals by parallel mean-field updates.

    ``Q⁰ = softmax(-unary)``, then ``Q ← softmax(-unary - Σ pairwise_messages(potential, Q))``
    (arXiv:1504.01013v2, prediction). Differentiable once, through the unrolled iterations; where no
    gradient is wanted, the whole loop over factored potentials is one call.

    Args:
        unary: energies, [N, K].
        potentials: a list or tuple of pairwise potentials on the same N nodes and K labels, in
            the dtype of ``unary``; may be empty. Under `torch.autocast` dtypes may differ, except
            from float64.
        iterations: the number of updates, >= 0.

    Returns:
        [N, K] in the dtype of ``unary``; rows sum to 1. Under `torch.autocast` float32, as that of
        `torch.softmax`. Between iterations nothing is rounded to less.
        `torch.set_float32_matmul_precision` holds as in `pairwise_messages`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_unary(unary, potentials)
    iterations = checked_iterations(iterations)
    dtype = result_dtype(unary.dtype, unary.device)
    wide_unary = unary.to(accumulate_dtype(unary.dtype))
    graphs = [graph_tensors(potential.graph) for potential in potentials]
    tensors = [potential_tensors(potential) for potential in potentials]
    factored = all(len(own) == _POTENTIAL_TENSORS for own in tensors)
    if factored and not wants_gradient(wide_unary, *tensors):
        marginals = mean_field_factored(
            [tensor for graph in graphs for tensor in graph],
            [tensor for potential in tensors for tensor in potential],
            wide_unary,
            iterations,
        )
        return marginals.to(dtype)
    marginals = (-wide_unary).softmax(1)
    if iterations and not unary.is_cuda:
        tensors = [_widened(potential) for potential in tensors]  # once, and not an iteration each
    for _ in range(iterations):
        energies = wide_unary
        for graph, potential in zip(graphs, tensors, strict=True):
            # The gradient is taken at the marginals, so that errors of theirs add to its own.
            energies = energies + messages(graph, potential, marginals, True)
        marginals = (-energies).softmax(1)
    return marginals.to(dtype)


def _widened(potential: list[Tensor]) -> list[Tensor]:
    dtype = potential[0].dtype
    if dtype not in HALVES:
        return potential
    # A compiled graph does not ask for the kernels of the machine that it is traced on.
    compiling = torch.compiler.is_compiling()
    if len(potential) == _POTENTIAL_TENSORS and not compiling and tiles_read(dtype):
        return potential
    return [tensor.to(torch.float32) for tensor in potential]


def _fake(graphs: list[Tensor], potentials: list[Tensor], unary: Tensor, iterations: int) -> Tensor:
    return unary.new_empty(unary.shape)


@operator(fake=_fake)
def mean_field_factored(
    graphs: list[Tensor], potentials: list[Tensor], unary: Tensor, iterations: int
) -> Tensor:
    """`mean_field` over factored potentials of one dtype, unary in the dtype that they sum in.

    The tensors of the graphs, and those of the potentials, stand one after another.
    """
    unary = unary.contiguous()
    marginals = empty_values(unary, *unary.shape)
    arguments = (
        [prepare(graph) for graph in _in_groups(graphs, _GRAPH_TENSORS)],
        [prepare_products(potential) for potential in _in_groups(potentials, _POTENTIAL_TENSORS)],
        unary,
        iterations,
        marginals,
        _backend.product_precision(potentials[0] if potentials else unary),
    )
    _backend.native().mean_field(
        *arguments, _backend.allocator(unary), *_backend.launch_args(unary)
    )
    return marginals


def _in_groups(tensors: list[Tensor], size: int) -> list[list[Tensor]]:
    return [tensors[i : i + size] for i in range(0, len(tensors), size)]
