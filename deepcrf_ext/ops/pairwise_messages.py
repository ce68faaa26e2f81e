"""Operator `pairwise_messages`: expected pairwise energies at the nodes, both ways of every edge.

The gradient with respect to the marginals is the operator itself applied to the incoming gradient,
as messages are symmetric in the two ends of an edge. Second derivatives are not implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._argument_checks import check_marginals, check_potential
from deepcrf_ext.ops._flat_tensors import (
    empty_gradients,
    factored_tensors,
    graph_tensors,
    prepare,
    prepare_graph,
)
from deepcrf_ext.ops.potentials import FactoredPotential, Potential


def pairwise_messages(potential: Potential, marginals: Tensor) -> Tensor:
    """Expected pairwise energy of every label of every node, given the marginals of the others.

    ``m_p[k] = Σ_(p,q) Σ_j V_pq(k, j) Q_q[j] + Σ_(q,p) Σ_j V_qp(j, k) Q_q[j]``: every edge sends a
    message to each of its ends. A factored potential costs E·D·K + N·D·K² operations a direction
    and keeps K·D values of a block of nodes; no E x K² or E x D array exists. Differentiable once
    in the potential and the marginals.

    Args:
        potential: the pairwise energies, K labels on a graph of N nodes.
        marginals: [N, K] in the dtype and on the device of the potential.

    Returns:
        [N, K] in the dtype of the potential.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_potential("potential", potential)
    check_marginals(marginals, potential)
    graph = graph_tensors(potential.graph)
    if isinstance(potential, FactoredPotential):
        return pairwise_messages_factored(graph, *factored_tensors(potential), marginals)
    return pairwise_messages_table(graph, potential.energies(), marginals)


@torch.library.custom_op("deepcrf_ext::pairwise_messages_factored", mutates_args=())
def pairwise_messages_factored(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    marginals: Tensor,
) -> Tensor:
    """`pairwise_messages` of a factored potential: [N, D], [N, D], [K, K, D], [K, K], [N, K]."""
    *tensors, prepared = prepare(source, target, weight, bias, marginals)
    operands = prepare_graph(graph), tuple(tensors)
    messages = torch.empty_like(prepared)
    workspace = _backend.workspace("pairwise_messages_factored_workspace", prepared, *operands)
    _backend.native().pairwise_messages_factored(
        *operands, prepared, messages, workspace, *_backend.launch_args(messages)
    )
    return messages.to(marginals.dtype)


@torch.library.custom_op("deepcrf_ext::pairwise_messages_factored_backward", mutates_args=())
def pairwise_messages_factored_backward(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    marginals: Tensor,
    grad_messages: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of source, target, weight and bias, given that of the messages, [N, K]."""
    *tensors, prepared, gradient = prepare(source, target, weight, bias, marginals, grad_messages)
    operands = prepare_graph(graph), tuple(tensors)
    gradients = empty_gradients(tensors)
    workspace = _backend.workspace(
        "pairwise_messages_factored_backward_workspace", prepared, *operands
    )
    _backend.native().pairwise_messages_factored_backward(
        *operands, prepared, gradient, gradients, workspace, *_backend.launch_args(prepared)
    )
    grad_source, grad_target, grad_weight, grad_bias = (g.to(source.dtype) for g in gradients)
    return grad_source, grad_target, grad_weight, grad_bias


@pairwise_messages_factored.register_fake
def _(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    marginals: Tensor,
) -> Tensor:
    return marginals.new_empty(marginals.shape)


@pairwise_messages_factored_backward.register_fake
def _(
    graph: Sequence[Tensor],
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    marginals: Tensor,
    grad_messages: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        source.new_empty(source.shape),
        target.new_empty(target.shape),
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    graph, *tensors = inputs
    ctx.num_graph_tensors = len(graph)
    ctx.save_for_backward(*graph, *tensors)


def _factored_gradient(ctx: Any, grad_messages: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: under checkpointing it can be only once
    graph = list(saved[: ctx.num_graph_tensors])
    *potential, marginals = saved[ctx.num_graph_tensors :]
    gradients: tuple[Tensor | None, ...] = (None, None, None, None)
    if any(ctx.needs_input_grad[1:5]):
        gradients = pairwise_messages_factored_backward(graph, *potential, marginals, grad_messages)
    grad_marginals = None
    if ctx.needs_input_grad[5]:
        grad_marginals = pairwise_messages_factored(graph, *potential, grad_messages)
    return [None] * len(graph), *gradients, grad_marginals


pairwise_messages_factored.register_autograd(_factored_gradient, setup_context=_save_inputs)


@torch.library.custom_op("deepcrf_ext::pairwise_messages_table", mutates_args=())
def pairwise_messages_table(graph: Sequence[Tensor], energies: Tensor, marginals: Tensor) -> Tensor:
    """`pairwise_messages` of a table potential: [E, K, K], [N, K]."""
    table, prepared = prepare(energies, marginals)
    messages = torch.empty_like(prepared)
    _backend.native().pairwise_messages_table(
        prepare_graph(graph), table, prepared, messages, *_backend.launch_args(messages)
    )
    return messages.to(marginals.dtype)


@torch.library.custom_op("deepcrf_ext::pairwise_messages_table_backward", mutates_args=())
def pairwise_messages_table_backward(
    graph: Sequence[Tensor], energies: Tensor, marginals: Tensor, grad_messages: Tensor
) -> Tensor:
    """Gradient of the energies, [E, K, K], given that of the messages, [N, K]."""
    table, prepared, gradient = prepare(energies, marginals, grad_messages)
    grad_energies = torch.empty_like(table)
    _backend.native().pairwise_messages_table_backward(
        prepare_graph(graph),
        table,
        prepared,
        gradient,
        grad_energies,
        *_backend.launch_args(table),
    )
    return grad_energies.to(energies.dtype)


@pairwise_messages_table.register_fake
def _(graph: Sequence[Tensor], energies: Tensor, marginals: Tensor) -> Tensor:
    return marginals.new_empty(marginals.shape)


@pairwise_messages_table_backward.register_fake
def _(
    graph: Sequence[Tensor], energies: Tensor, marginals: Tensor, grad_messages: Tensor
) -> Tensor:
    return energies.new_empty(energies.shape)


def _table_gradient(ctx: Any, grad_messages: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: under checkpointing it can be only once
    graph = list(saved[: ctx.num_graph_tensors])
    energies, marginals = saved[ctx.num_graph_tensors :]
    grad_energies = grad_marginals = None
    if ctx.needs_input_grad[1]:
        grad_energies = pairwise_messages_table_backward(graph, energies, marginals, grad_messages)
    if ctx.needs_input_grad[2]:
        grad_marginals = pairwise_messages_table(graph, energies, grad_messages)
    return [None] * len(graph), grad_energies, grad_marginals


pairwise_messages_table.register_autograd(_table_gradient, setup_context=_save_inputs)
