"""Operator `pairwise_messages`: expected pairwise energies at the nodes, both ways of every edge.

The gradient with respect to the marginals is the operator itself applied to the incoming gradient,
as messages are symmetric in the two ends of an edge. Second derivatives are not implemented.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._argument_checks import check_marginals, check_potential
from deepcrf_ext.ops._autocast import autocast_dtype
from deepcrf_ext.ops._flat_tensors import (
    empty_gradients,
    empty_values,
    graph_tensors,
    potential_tensors,
    prepare,
    prepare_potential,
    prepare_values,
    rounded,
)
from deepcrf_ext.ops._pairwise_messages_blocks import potential_gradients
from deepcrf_ext.ops._registration import below_autograd, once, operator
from deepcrf_ext.ops.potentials import Potential


def pairwise_messages(potential: Potential, marginals: Tensor) -> Tensor:
    """Expected pairwise energy of every label of every node, given the marginals of the others.

    ``m_p[k] = Σ_(p,q) Σ_j V_pq(k, j) Q_q[j] + Σ_(q,p) Σ_j V_qp(j, k) Q_q[j]``: every edge sends a
    message to each of its ends. A factored potential costs E·D·K + N·D·K² operations a direction
    and keeps K·D values of a block of nodes; no E x K² or E x D array exists. Differentiable once
    in the potential and the marginals.

    Args:
        potential: the pairwise energies, K labels on a graph of N nodes.
        marginals: [N, K] in the dtype and on the device of the potential. Under `torch.autocast`
            dtypes may differ, except from float64.

    Returns:
        [N, K] in the dtype of the potential, summed in float32 at least. Under `torch.autocast` in
        its dtype, as a matrix product. `torch.set_float32_matmul_precision`, read at every call and
        again by backward, holds for a float32 potential on CUDA and on CPUs with matrix tiles
        (Intel AMX): "highest", the default, multiplies in float32, "high" by three products of
        TensorFloat32 on CUDA and of bfloat16 on the CPU (16 bits of each operand), "medium" by one,
        which rounds each operand by 2⁻¹¹ on CUDA and 2⁻⁹ on the CPU. Gradients on CUDA take torch's
        own products as well, which under "high" are TensorFloat32. Where torch was told by
        ``torch.backends.cuda.matmul.fp32_precision``, or that of ``mkldnn`` for the CPU, "tf32" is
        "high" and "bf16" is "medium".

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> graph = dc.EdgeGraph.from_edges(torch.tensor([0, 1]), torch.tensor([1, 2]), num_nodes=3)
        >>> potts = dc.TablePotential(graph, (1 - torch.eye(2)).expand(2, 2, 2))
        >>> dc.pairwise_messages(potts, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        tensor([[0., 1.],
                [1., 1.],
                [0., 1.]])
    """
    check_potential("potential", potential)
    check_marginals(marginals, potential)
    graph, tensors = graph_tensors(potential.graph), potential_tensors(potential)
    dtype = autocast_dtype(marginals.device)
    if dtype is None or potential.dtype == torch.float64:
        dtype = potential.dtype
    return messages(graph, tensors, marginals, False).to(dtype)


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, graph: list[Tensor], exact: bool, marginals: Tensor, *potential: Tensor
    ) -> Tensor:
        ctx.graph = graph
        ctx.save_for_backward(marginals, *potential)
        with below_autograd():
            return messages(graph, list(potential), marginals, exact)

    @staticmethod
    def backward(ctx: Any, *grad_messages: Tensor) -> tuple[Any, ...]:
        (gradient,) = grad_messages
        marginals, *potential = ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * (1 + len(potential))
        with torch.no_grad():
            if ctx.needs_input_grad[2]:
                of_marginals = messages(ctx.graph, gradient_potential(potential), gradient, False)
                gradients[0] = of_marginals.to(marginals.dtype)
            if any(ctx.needs_input_grad[3:]):
                of_potential = messages_backward(
                    ctx.graph, potential, marginals[None], gradient[None]
                )
                gradients[1:] = rounded(of_potential, potential)
        origins = [gradient, marginals, *potential]
        return (
            None,
            None,
            *once("deepcrf_ext: the backward pass of pairwise_messages", gradients, origins),
        )


def gradient_potential(potential: list[Tensor]) -> list[Tensor]:
    """The potential over which the gradient of messages is the gradient of the marginals."""
    # Gradients may be larger than float16 holds, or smaller.
    if potential[0].dtype == torch.float16 and _backend.uses_cuda_kernels(potential[0]):
        return [tensor.to(torch.float32) for tensor in potential]
    return potential


def _differentiable(
    graph: list[Tensor], potential: list[Tensor], marginals: Tensor, exact: bool
) -> Tensor:
    result: Tensor = _Messages.apply(graph, exact, marginals, *potential)
    return result


def _fake(graph: list[Tensor], potential: list[Tensor], marginals: Tensor, exact: bool) -> Tensor:
    return empty_values(marginals, *marginals.shape)


@operator(fake=_fake, differentiable=_differentiable)
def messages(
    graph: list[Tensor], potential: list[Tensor], marginals: Tensor, exact: bool
) -> Tensor:
    """`pairwise_messages` of the tensors of a graph and a potential, in the dtype of its sums.

    exact: where operands of bfloat16 would do, those of the CPU's matrix tiles are sums of two, and
    those on CUDA are TensorFloat32, which has three bits more.
    """
    operand, precision = message_operand(potential, exact)
    return receive(prepare(graph), operand, precision, prepare_values(marginals))


def message_operand(potential: list[Tensor], exact: bool) -> tuple[tuple[Tensor, ...], str]:
    """A potential as `receive` takes it, and how exact its products are to be; see `messages`."""
    if len(potential) == 1:
        return prepare_potential(potential), "highest"
    if not _backend.uses_cuda_kernels(potential[0]):
        operand = prepare_potential(potential)
        return operand, _backend.product_precision(operand[0], exact)
    if exact and potential[0].dtype == torch.bfloat16:
        return prepare([tensor.to(torch.float32) for tensor in potential]), "medium"
    return prepare(potential), _backend.product_precision(potential[0])


def receive(
    graph: tuple[Tensor, ...], operand: tuple[Tensor, ...], precision: str, marginals: Tensor
) -> Tensor:
    """Messages [N, K], all tensors as kernels read them; for the kernels of operators."""
    received = empty_values(marginals, *marginals.shape)
    native = _backend.native()
    closing = (_backend.allocator(marginals), *_backend.launch_args(marginals))
    if len(operand) == 1:
        native.pairwise_messages_table(graph, *operand, marginals, received, *closing)
    else:
        native.pairwise_messages_factored(graph, operand, marginals, received, precision, *closing)
    return received


def _fake_backward(
    graph: list[Tensor], potential: list[Tensor], marginals: Tensor, grad_messages: Tensor
) -> list[Tensor]:
    return empty_gradients(potential)


@operator(fake=_fake_backward)
def messages_backward(
    graph: list[Tensor], potential: list[Tensor], marginals: Tensor, grad_messages: Tensor
) -> list[Tensor]:
    """Gradients of the tensors of the potential, summed over M >= 1 messages.

    Args:
        graph: the tensors of the graph.
        potential: the tensors of the potential.
        marginals: [M, N, K].
        grad_messages: [M, N, K], the gradients of the messages that these gave.
    """
    graph_operand, operand = prepare(graph), prepare_potential(potential)
    values, gradient = prepare_values(marginals), prepare_values(grad_messages)
    if len(potential) > 1 and _backend.uses_cuda_kernels(values):
        return _products_gradients(graph_operand, operand, values, gradient)
    gradients = empty_gradients(potential)
    native, launch_args = _backend.native(), _backend.launch_args(values)
    if len(potential) == 1:
        native.pairwise_messages_table_backward(
            graph_operand, *operand, values, gradient, *gradients, *launch_args
        )
    else:
        native.pairwise_messages_factored_backward(
            graph_operand,
            operand,
            values,
            gradient,
            tuple(gradients),
            _backend.product_precision(operand[0]),
            *launch_args,
        )
    return gradients


def _products_gradients(
    graph: tuple[Tensor, ...],
    potential: tuple[Tensor, ...],
    marginals: Tensor,
    grad_messages: Tensor,
) -> list[Tensor]:
    gradients = potential_gradients(graph, potential, marginals[0], grad_messages[0])
    for i in range(1, len(marginals)):
        of_message = potential_gradients(graph, potential, marginals[i], grad_messages[i])
        torch._foreach_add_(gradients, of_message)
    return gradients
