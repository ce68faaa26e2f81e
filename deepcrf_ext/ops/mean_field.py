"""Operator `mean_field`: parallel mean-field inference over pairwise potentials."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._argument_checks import check_unary, checked_iterations
from deepcrf_ext.ops._flat_tensors import factored_tensors, graph_tensors, prepare, prepare_graph
from deepcrf_ext.ops.pairwise_messages import pairwise_messages
from deepcrf_ext.ops.potentials import FactoredPotential, Potential, TablePotential

_GRAPH_TENSORS = 5
_POTENTIAL_TENSORS = 4


def mean_field(unary: Tensor, potentials: Sequence[Potential], iterations: int = 2) -> Tensor:
    """Approximate marginals by parallel mean-field updates.

    ``Q⁰ = softmax(-unary)``, then ``Q ← softmax(-unary - Σ pairwise_messages(potential, Q))``
    (arXiv:1504.01013v2, prediction). Differentiable once, through the unrolled iterations; where no
    gradient is wanted, the whole loop over factored potentials is one call.

    Args:
        unary: energies, [N, K].
        potentials: a list or tuple of pairwise potentials on the same N nodes and K labels, in
            the dtype of ``unary``; may be empty.
        iterations: the number of updates, >= 0.

    Returns:
        [N, K] in the dtype of ``unary``; rows sum to 1.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_unary(unary, potentials)
    iterations = checked_iterations(iterations)
    factored = [p for p in potentials if isinstance(p, FactoredPotential)]
    if len(factored) == len(potentials) and not _needs_gradient(unary, factored):
        return mean_field_factored(
            [tensor for p in factored for tensor in graph_tensors(p.graph)],
            [tensor for p in factored for tensor in factored_tensors(p)],
            unary,
            iterations,
        )
    # float32 at least throughout: an energy rounded between iterations is lost to the next.
    dtype = torch.promote_types(unary.dtype, torch.float32)
    wide_unary, wide_potentials = unary.to(dtype), [_converted(p, dtype) for p in potentials]
    marginals = (-wide_unary).softmax(1)
    for _ in range(iterations):
        energies = wide_unary
        for potential in wide_potentials:
            energies = energies + pairwise_messages(potential, marginals)
        marginals = (-energies).softmax(1)
    return marginals.to(unary.dtype)


def _converted(potential: Potential, dtype: torch.dtype) -> Potential:
    """The potential in another dtype, differentiably."""
    if isinstance(potential, FactoredPotential):
        tensors = (tensor.to(dtype) for tensor in factored_tensors(potential))
        return FactoredPotential(potential.graph, *tensors)
    return TablePotential(potential.graph, potential.energies().to(dtype))


def _needs_gradient(unary: Tensor, potentials: Sequence[FactoredPotential]) -> bool:
    tensors = [unary, *(tensor for p in potentials for tensor in factored_tensors(p))]
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


@torch.library.custom_op("deepcrf_ext::mean_field_factored", mutates_args=())
def mean_field_factored(
    graphs: Sequence[Tensor], potentials: Sequence[Tensor], unary: Tensor, iterations: int
) -> Tensor:
    """`mean_field` over factored potentials, their graphs' and own tensors one after another."""
    (prepared,) = prepare(unary)
    marginals = torch.empty_like(prepared)
    arguments = (
        _in_groups(prepare_graph(graphs), _GRAPH_TENSORS),
        _in_groups(prepare(*potentials), _POTENTIAL_TENSORS),
        prepared,
        iterations,
        marginals,
    )
    workspace = _backend.workspace("mean_field_workspace", prepared, *arguments)
    _backend.native().mean_field(*arguments, workspace, *_backend.launch_args(marginals))
    return marginals.to(unary.dtype)


def _in_groups(tensors: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    return [tensors[i : i + size] for i in range(0, len(tensors), size)]


@mean_field_factored.register_fake
def _(
    graphs: Sequence[Tensor], potentials: Sequence[Tensor], unary: Tensor, iterations: int
) -> Tensor:
    return unary.new_empty(unary.shape)
