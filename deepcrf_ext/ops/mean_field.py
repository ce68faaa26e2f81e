"""Operator `mean_field`: parallel mean-field inference over pairwise potentials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._argument_checks import check_unary
from deepcrf_ext.ops._autocast import accumulate_dtype, result_dtype
from deepcrf_ext.ops._flat_tensors import (
    empty_values,
    graph_tensors,
    potential_tensors,
    prepare,
    prepare_potential,
    rounded,
)
from deepcrf_ext.ops._func_transforms import wants_gradient
from deepcrf_ext.ops._number_checks import checked_iterations
from deepcrf_ext.ops._registration import below_autograd, once, operator
from deepcrf_ext.ops.pairwise_messages import (
    gradient_potential,
    message_operand,
    messages_backward,
    receive,
)
from deepcrf_ext.ops.potentials import FactoredPotential, Potential

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

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> graph = dc.EdgeGraph.from_edges(torch.tensor([0, 1]), torch.tensor([1, 2]), num_nodes=3)
        >>> potts = dc.TablePotential(graph, (1 - torch.eye(2)).expand(2, 2, 2))
        >>> unary = torch.tensor([[0.0, 2.0], [0.1, 0.0], [0.0, 2.0]])
        >>> dc.mean_field(unary, [potts]).argmax(1)  # the middle node follows its neighbours
        tensor([0, 0, 0])
    """
    check_unary(unary, potentials)
    iterations = checked_iterations(iterations)
    dtype = result_dtype(unary.dtype, unary.device)
    wide_unary = unary.to(accumulate_dtype(unary.dtype))
    graphs = [tensor for potential in potentials for tensor in graph_tensors(potential.graph)]
    tensors = [tensor for potential in potentials for tensor in potential_tensors(potential)]
    factored = all(isinstance(potential, FactoredPotential) for potential in potentials)
    if factored and not wants_gradient(wide_unary, tensors):
        return mean_field_factored(graphs, tensors, wide_unary, iterations).to(dtype)
    history = mean_field_unrolled(graphs, tensors, wide_unary, iterations)
    return history[iterations].to(dtype)


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
        [prepare_potential(potential) for potential in _in_groups(potentials, _POTENTIAL_TENSORS)],
        unary,
        iterations,
        marginals,
        _backend.product_precision(potentials[0] if potentials else unary),
    )
    _backend.native().mean_field(
        *arguments, _backend.allocator(unary), *_backend.launch_args(unary)
    )
    return marginals


class _MeanField(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, graphs: list[Tensor], iterations: int, unary: Tensor, *potentials: Tensor
    ) -> Tensor:
        ctx.graphs = graphs
        with below_autograd():
            history = mean_field_unrolled(graphs, list(potentials), unary, iterations)
        ctx.save_for_backward(history, *potentials)
        return history

    @staticmethod
    def backward(ctx: Any, *grad_results: Tensor) -> tuple[Any, ...]:
        (grad_history,) = grad_results
        history, *potentials = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        gradients: list[Tensor | None] = []
        with torch.no_grad():
            of_unary = ctx.needs_input_grad[2]
            grad_energies = mean_field_unrolled_backward(
                ctx.graphs, potentials, history, grad_history, of_unary
            )
            for graph, potential in _relations(ctx.graphs, potentials):
                own, needed = needed[: len(potential)], needed[len(potential) :]
                if any(own) and len(history) > 1:
                    of_potential = messages_backward(
                        graph, potential, history[:-1], grad_energies[1:]
                    )
                    gradients += rounded(of_potential, potential)
                else:
                    gradients += [None] * len(potential)
        results = [grad_energies.sum(0) if of_unary else None, *gradients]
        origins = [grad_history, history, *potentials]
        return (
            None,
            None,
            *once("deepcrf_ext: the backward pass of mean_field", results, origins),
        )


def _differentiable(
    graphs: list[Tensor], potentials: list[Tensor], unary: Tensor, iterations: int
) -> Tensor:
    result: Tensor = _MeanField.apply(graphs, iterations, unary, *potentials)
    return result


def _fake_unrolled(
    graphs: list[Tensor], potentials: list[Tensor], unary: Tensor, iterations: int
) -> Tensor:
    return unary.new_empty(iterations + 1, *unary.shape)


@operator(fake=_fake_unrolled, differentiable=_differentiable)
def mean_field_unrolled(
    graphs: list[Tensor], potentials: list[Tensor], unary: Tensor, iterations: int
) -> Tensor:
    """The marginals before, between and after the updates, [iterations + 1, N, K].

    Arguments are as those of `mean_field_factored`; potentials may be tables too.
    """
    unary = unary.contiguous()
    history = [(-unary).softmax(1)]
    # The gradient is taken at the marginals, so that errors of theirs add to its own.
    relations = [
        (prepare(graph), *message_operand(potential, exact=True))
        for graph, potential in _relations(graphs, potentials)
    ]
    for _ in range(iterations):
        energies = unary
        for relation in relations:
            energies = energies + receive(*relation, history[-1])
        history.append((-energies).softmax(1))
    return torch.stack(history)


def _fake_unrolled_backward(
    graphs: list[Tensor],
    potentials: list[Tensor],
    history: Tensor,
    grad_history: Tensor,
    of_unary: bool,
) -> Tensor:
    return torch.empty_like(history)


@operator(fake=_fake_unrolled_backward)
def mean_field_unrolled_backward(
    graphs: list[Tensor],
    potentials: list[Tensor],
    history: Tensor,
    grad_history: Tensor,
    of_unary: bool,
) -> Tensor:
    """Gradients of the energies whose negative softmax `history` holds, [iterations + 1, N, K].

    of_unary: those of the first too, the unary energies alone; else zeros stand for them.
    """
    relations = [
        (prepare(graph), *message_operand(gradient_potential(potential), exact=False))
        for graph, potential in _relations(graphs, potentials)
    ]
    history = history.contiguous()
    grad_energies = torch.zeros_like(history)
    gradient = grad_history[-1]
    last = 0 if of_unary else 1
    for i in range(len(history) - 1, last - 1, -1):
        marginals = history[i]
        mean = (marginals * gradient).sum(1, keepdim=True)
        torch.mul(marginals, mean - gradient, out=grad_energies[i])
        if i > last:
            gradient = grad_history[i - 1]
            for relation in relations:
                gradient = gradient + receive(*relation, grad_energies[i])
    return grad_energies


def _relations(
    graphs: list[Tensor], potentials: list[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The tensors of each graph with those of its potential: a table alone, [E, K, K], or four."""
    first = 0
    for graph in _in_groups(graphs, _GRAPH_TENSORS):
        size = 1 if potentials[first].ndim == 3 else _POTENTIAL_TENSORS
        yield graph, potentials[first : first + size]
        first += size


def _in_groups(tensors: list[Tensor], size: int) -> list[list[Tensor]]:
    return [tensors[i : i + size] for i in range(0, len(tensors), size)]
