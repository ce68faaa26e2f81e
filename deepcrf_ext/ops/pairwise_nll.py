"""Operator `pairwise_nll`: the piecewise loss of the edges, a softmax over K² label pairs each.

Where a gradient is wanted of a sum or mean, it is formed in the pass that computes the loss, while
the energies of a tile of edges are at hand; backward then only scales it. Second derivatives are
not implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._argument_checks import check_potential, check_reduction, checked_labels
from deepcrf_ext.ops._flat_tensors import (
    compute_dtype,
    contiguous,
    empty_gradients,
    factored_tensors,
    graph_tensors,
    prepare,
    prepare_graph,
)
from deepcrf_ext.ops._pairwise_nll_chunks import losses_and_gradients
from deepcrf_ext.ops.graph import EdgeGraph
from deepcrf_ext.ops.potentials import FactoredPotential, Potential


def pairwise_nll(
    potential: Potential, labels: Tensor, ignore_index: int = 255, reduction: str = "mean"
) -> Tensor:
    """Negative log-likelihood of the labels of every edge, a softmax over its K² label pairs.

    The loss of edge (p, q) is ``V_pq(y_p, y_q) + log Σ_kj exp(-V_pq(k, j))`` (arXiv:1504.01013v2,
    piecewise training). The energies of a factored potential exist only a tile of edges at a time.
    Differentiable once in the potential.

    Args:
        potential: the pairwise energies, K labels on a graph of N nodes and E edges.
        labels: [N], any integer dtype, 0..K-1 or ``ignore_index``.
        ignore_index: the label of nodes that drop out, with all their edges.
        reduction: "mean" over valid edges (0 when there is none), "sum", or "none": [E] with 0
            at edges that drop out.

    Returns:
        A scalar, or [E], in the dtype of the potential.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_potential("potential", potential)
    check_reduction(reduction)
    labels, ignore_index = checked_labels(
        labels, potential.graph.num_nodes, potential.num_labels, ignore_index, potential.device
    )
    graph = graph_tensors(potential.graph)
    if isinstance(potential, FactoredPotential):
        parameters: tuple[Tensor, ...] = factored_tensors(potential)
        losses_of, total_of = pairwise_nll_factored, pairwise_nll_factored_total
    else:
        parameters = (potential.energies(),)
        losses_of, total_of = pairwise_nll_table, pairwise_nll_table_total

    if reduction == "none":
        return losses_of(graph, *parameters, labels, ignore_index)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in parameters):
        total = total_of(graph, *parameters, labels, ignore_index)[0]
    else:
        total = losses_of(graph, *parameters, labels, ignore_index).sum()
    if reduction == "mean":
        total = total / _num_valid_edges(potential.graph, labels, ignore_index).clamp(min=1)
    return total.to(potential.dtype)


def _num_valid_edges(graph: EdgeGraph, labels: Tensor, ignore_index: int) -> Tensor:
    valid = labels != ignore_index
    sources, targets = graph.edge_index()
    return (valid[sources] & valid[targets]).sum()


@torch.library.custom_op("deepcrf_ext::pairwise_nll_factored", mutates_args=())
def pairwise_nll_factored(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    ignore_index: int,
) -> Tensor:
    """Losses [E] of a factored potential: [N, D], [N, D], [K, K, D], [K, K], int64 [N]."""
    operands = prepare_graph(graph), contiguous(source, target, weight, bias), labels.contiguous()
    if _backend.uses_cuda_kernels(source):
        return losses_and_gradients(*operands, ignore_index, None, differentiate=False)[0]
    losses = source.new_empty(graph[1].shape, dtype=compute_dtype(source))
    _backend.native().pairwise_nll_factored(
        *operands, ignore_index, losses, *_backend.launch_args(losses)
    )
    return losses.to(source.dtype)


@torch.library.custom_op("deepcrf_ext::pairwise_nll_factored_backward", mutates_args=())
def pairwise_nll_factored_backward(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses [E], and the gradients of their weighted sum in the four tensors of the potential.

    Without ``edge_weight`` [E], all weights are 1. The results are in the dtype of the kernel, so
    that what is yet to be scaled is not rounded twice.
    """
    graph, potential = prepare_graph(graph), contiguous(source, target, weight, bias)
    labels = labels.contiguous()
    if edge_weight is not None:
        (edge_weight,) = prepare(edge_weight)
    if _backend.uses_cuda_kernels(source):
        losses, *gradients = losses_and_gradients(
            graph, potential, labels, ignore_index, edge_weight
        )
    else:
        losses = source.new_empty(graph[1].shape, dtype=compute_dtype(source))
        gradients = list(empty_gradients(potential))
        _backend.native().pairwise_nll_factored_backward(
            graph,
            potential,
            labels,
            ignore_index,
            edge_weight,
            losses,
            tuple(gradients),
            *_backend.launch_args(losses),
        )
    grad_source, grad_target, grad_weight, grad_bias = gradients
    return losses, grad_source, grad_target, grad_weight, grad_bias


@torch.library.custom_op("deepcrf_ext::pairwise_nll_factored_total", mutates_args=())
def pairwise_nll_factored_total(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sum of the losses and its gradients, in one pass and the dtype of the kernel."""
    losses, *gradients = pairwise_nll_factored_backward(
        graph, source, target, weight, bias, labels, ignore_index, None
    )
    grad_source, grad_target, grad_weight, grad_bias = gradients
    return losses.sum(), grad_source, grad_target, grad_weight, grad_bias


@pairwise_nll_factored.register_fake
def _(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    ignore_index: int,
) -> Tensor:
    return source.new_empty(graph[1].shape)


@pairwise_nll_factored_backward.register_fake
def _(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    losses = source.new_empty(graph[1].shape, dtype=compute_dtype(source))
    return losses, *_fake_gradients(source, target, weight, bias)


@pairwise_nll_factored_total.register_fake
def _(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    total = source.new_empty((), dtype=compute_dtype(source))
    return total, *_fake_gradients(source, target, weight, bias)


def _fake_gradients(
    source: Tensor, target: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = compute_dtype(source)
    return (
        source.new_empty(source.shape, dtype=dtype),
        target.new_empty(target.shape, dtype=dtype),
        weight.new_empty(weight.shape, dtype=dtype),
        bias.new_empty(bias.shape, dtype=dtype),
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    graph, *tensors, ctx.ignore_index = inputs
    ctx.num_graph_tensors = len(graph)
    ctx.save_for_backward(*graph, *tensors)


def _factored_gradient(ctx: Any, grad_losses: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: under checkpointing it can be only once
    graph = list(saved[: ctx.num_graph_tensors])
    *potential, labels = saved[ctx.num_graph_tensors :]
    _, *gradients = pairwise_nll_factored_backward(
        graph, *potential, labels, ctx.ignore_index, grad_losses
    )
    gradients = [g.to(p.dtype) for g, p in zip(gradients, potential, strict=True)]
    return [None] * len(graph), *gradients, None, None


pairwise_nll_factored.register_autograd(_factored_gradient, setup_context=_save_inputs)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    graph, *parameters, _labels, _ignore_index = inputs
    ctx.num_graph_tensors = len(graph)
    ctx.dtype = parameters[0].dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Any, ...]:
    gradients = ctx.saved_tensors
    graph = [None] * ctx.num_graph_tensors
    if grad_total is None:
        return graph, *[None] * len(gradients), None, None
    return graph, *[scale(g, grad_total, ctx.dtype) for g in gradients], None, None


pairwise_nll_factored_total.register_autograd(_scale_gradients, setup_context=_save_gradients)


@torch.library.custom_op("deepcrf_ext::scale", mutates_args=())
def scale(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient times factor, in dtype; an operator, so that differentiating it is an error."""
    return (gradient * factor).to(dtype)


@scale.register_fake
def _(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


@torch.library.custom_op("deepcrf_ext::pairwise_nll_table", mutates_args=())
def pairwise_nll_table(
    graph: Sequence[Tensor], energies: Tensor, labels: Tensor, ignore_index: int
) -> Tensor:
    """Losses [E] of a table potential: [E, K, K], int64 [N]."""
    (table,) = prepare(energies)
    losses = table.new_empty(graph[1].shape)
    _backend.native().pairwise_nll_table(
        prepare_graph(graph),
        table,
        labels.contiguous(),
        ignore_index,
        losses,
        *_backend.launch_args(losses),
    )
    return losses.to(energies.dtype)


@torch.library.custom_op("deepcrf_ext::pairwise_nll_table_backward", mutates_args=())
def pairwise_nll_table_backward(
    graph: Sequence[Tensor],
    energies: Tensor,
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Losses [E], and the gradient [E, K, K] of their weighted sum, in the dtype of the kernel."""
    (table,) = prepare(energies)
    losses = table.new_empty(graph[1].shape)
    grad_energies = torch.empty_like(table)
    _backend.native().pairwise_nll_table_backward(
        prepare_graph(graph),
        table,
        labels.contiguous(),
        ignore_index,
        None if edge_weight is None else prepare(edge_weight)[0],
        losses,
        grad_energies,
        *_backend.launch_args(losses),
    )
    return losses, grad_energies


@torch.library.custom_op("deepcrf_ext::pairwise_nll_table_total", mutates_args=())
def pairwise_nll_table_total(
    graph: Sequence[Tensor], energies: Tensor, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The sum of the losses and its gradient, in one pass and the dtype of the kernel."""
    losses, grad_energies = pairwise_nll_table_backward(graph, energies, labels, ignore_index, None)
    return losses.sum(), grad_energies


@pairwise_nll_table.register_fake
def _(graph: Sequence[Tensor], energies: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return energies.new_empty(graph[1].shape)


@pairwise_nll_table_backward.register_fake
def _(
    graph: Sequence[Tensor],
    energies: Tensor,
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(energies)
    losses = energies.new_empty(graph[1].shape, dtype=dtype)
    return losses, energies.new_empty(energies.shape, dtype=dtype)


@pairwise_nll_table_total.register_fake
def _(
    graph: Sequence[Tensor], energies: Tensor, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(energies)
    total = energies.new_empty((), dtype=dtype)
    return total, energies.new_empty(energies.shape, dtype=dtype)


def _table_gradient(ctx: Any, grad_losses: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: under checkpointing it can be only once
    graph = list(saved[: ctx.num_graph_tensors])
    energies, labels = saved[ctx.num_graph_tensors :]
    _, grad_energies = pairwise_nll_table_backward(
        graph, energies, labels, ctx.ignore_index, grad_losses
    )
    return [None] * len(graph), grad_energies.to(energies.dtype), None, None


pairwise_nll_table.register_autograd(_table_gradient, setup_context=_save_inputs)
pairwise_nll_table_total.register_autograd(_scale_gradients, setup_context=_save_gradients)
