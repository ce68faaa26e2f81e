"""Operator `pairwise_nll`: the piecewise loss of the edges, a softmax over K² label pairs each.

Where a gradient of a factored potential is wanted of a sum or mean, it is formed in the pass that
computes the loss, while the energies of a tile of edges are at hand; backward then only scales it.
That of a table is as large as the table: backward forms it, already scaled. Second derivatives are
not implemented.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._argument_checks import check_potential, check_reduction, checked_labels
from deepcrf_ext.ops._autocast import result_dtype
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
from deepcrf_ext.ops._pairwise_nll_chunks import losses_and_gradients
from deepcrf_ext.ops._registration import below_autograd, once, operator
from deepcrf_ext.ops.potentials import Potential


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
        A scalar, or [E], in the dtype of the potential; under `torch.autocast` in float32, as that
        of `torch.nn.functional.cross_entropy`. Sums are taken in float32 at least.
        `torch.set_float32_matmul_precision` holds for a float32 potential on CPUs with matrix tiles
        (Intel AMX) as in `pairwise_messages`, and on CUDA as for torch's own products.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> graph = dc.EdgeGraph.from_edges(torch.tensor([0, 1]), torch.tensor([1, 2]), num_nodes=3)
        >>> potts = dc.TablePotential(graph, (1 - torch.eye(2)).expand(2, 2, 2))
        >>> dc.pairwise_nll(potts, torch.tensor([0, 0, 255]))  # of the first edge alone
        tensor(1.0064)
    """
    check_potential("potential", potential)
    check_reduction(reduction)
    labels, ignore_index = checked_labels(
        labels, potential.graph.num_nodes, potential.num_labels, ignore_index, potential.device
    )
    graph, tensors = graph_tensors(potential.graph), potential_tensors(potential)
    losses = edge_losses(graph, tensors, labels, ignore_index, reduction)
    return losses.to(result_dtype(potential.dtype, potential.device))


class _Losses(torch.autograd.Function):
    """The loss of every edge, or a reduction of them."""

    @staticmethod
    def forward(
        ctx: Any,
        graph: list[Tensor],
        labels: Tensor,
        ignore_index: int,
        reduction: str,
        *potential: Tensor,
    ) -> Tensor:
        ctx.graph, ctx.ignore_index, ctx.num_tensors = graph, ignore_index, len(potential)
        with below_autograd():
            if reduction == "none":
                value = edge_losses(graph, list(potential), labels, ignore_index, reduction)
                factor_and_gradients = []
            else:
                value, *factor_and_gradients = edge_losses_forward_backward(
                    graph, list(potential), labels, ignore_index, reduction
                )
        ctx.save_for_backward(labels, *potential, *factor_and_gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_losses: Tensor) -> tuple[Any, ...]:
        (gradient,) = grad_losses
        labels, *tensors = ctx.saved_tensors
        potential, rest = tensors[: ctx.num_tensors], tensors[ctx.num_tensors :]
        factor, unscaled = rest[:1], rest[1:]
        with torch.no_grad():
            if unscaled:
                gradients = scale_all(unscaled, [gradient, *factor], potential[0].dtype)
            else:
                weight = gradient * factor[0] if factor else gradient
                weight = weight.expand(ctx.graph[1].shape)
                gradients = edge_losses_backward(
                    ctx.graph, potential, labels, ctx.ignore_index, weight
                )
                gradients = rounded(gradients, potential)
        refusing = once(
            "deepcrf_ext: the backward pass of pairwise_nll", gradients, [gradient, *potential]
        )
        return None, None, None, None, *refusing


def _differentiable(
    graph: list[Tensor], potential: list[Tensor], labels: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    result: Tensor = _Losses.apply(graph, labels, ignore_index, reduction, *potential)
    return result


def _fake(
    graph: list[Tensor], potential: list[Tensor], labels: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    shape = graph[1].shape if reduction == "none" else ()
    return empty_values(potential[0], *shape)


@operator(fake=_fake, differentiable=_differentiable)
def edge_losses(
    graph: list[Tensor], potential: list[Tensor], labels: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    """`pairwise_nll` of the tensors of a graph and of a potential, in the dtype of its sums.

    Labels are int64 [N] and valid.
    """
    losses, _ = _losses(graph, potential, labels, ignore_index, None, differentiate=False)
    if reduction == "none":
        return losses
    return _reduced(graph, labels, ignore_index, losses, reduction)[0]


def _fake_forward_backward(
    graph: list[Tensor], potential: list[Tensor], labels: Tensor, ignore_index: int, reduction: str
) -> list[Tensor]:
    value = empty_values(potential[0])
    gradients = empty_gradients(potential) if len(potential) == 4 else []
    return [value, torch.empty_like(value), *gradients]


@operator(fake=_fake_forward_backward)
def edge_losses_forward_backward(
    graph: list[Tensor], potential: list[Tensor], labels: Tensor, ignore_index: int, reduction: str
) -> list[Tensor]:
    """The sum or mean, in one pass with the gradients of the sum in a factored potential.

    Returns:
        The sum or mean; the factor that makes its gradients of those of the sum; these.
    """
    factored = len(potential) == 4
    losses, gradients = _losses(graph, potential, labels, ignore_index, None, factored)
    return [*_reduced(graph, labels, ignore_index, losses, reduction), *gradients]


def _fake_backward(
    graph: list[Tensor],
    potential: list[Tensor],
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor,
) -> list[Tensor]:
    return empty_gradients(potential)


@operator(fake=_fake_backward)
def edge_losses_backward(
    graph: list[Tensor],
    potential: list[Tensor],
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor,
) -> list[Tensor]:
    """The gradients of the sum of the losses, weighted by `edge_weight` [E]."""
    return _losses(graph, potential, labels, ignore_index, edge_weight, differentiate=True)[1]


def _losses(
    graph: list[Tensor],
    potential: list[Tensor],
    labels: Tensor,
    ignore_index: int,
    edge_weight: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Losses [E] and, with `differentiate`, the gradients of their weighted sum."""
    graph_operand, labels = prepare(graph), labels.contiguous()
    weight = None if edge_weight is None else prepare_values(edge_weight)
    on_cuda = _backend.uses_cuda_kernels(labels)
    if len(potential) == 4 and on_cuda:
        return losses_and_gradients(
            graph_operand, prepare(potential), labels, ignore_index, weight, differentiate
        )
    if potential[0].dtype == torch.bfloat16 and len(potential) == 4:
        operand = tuple(tensor.contiguous() for tensor in potential)  # multiplied as it is
    else:
        operand = prepare_potential(potential)
    losses = empty_values(operand[0], *graph[1].shape)
    gradients = empty_gradients(potential) if differentiate else []
    native = _backend.native()
    closing: tuple[Any, ...] = _backend.launch_args(losses)
    factored = len(operand) == 4
    arguments = (graph_operand, operand if factored else operand[0], labels, ignore_index)
    name = "pairwise_nll_factored" if factored else "pairwise_nll_table"
    if factored:
        closing = (_backend.product_precision(operand[0]), *closing)
    if not differentiate:
        getattr(native, name)(*arguments, losses, *closing)
    else:
        results = tuple(gradients) if factored else gradients[0]
        getattr(native, name + "_backward")(*arguments, weight, losses, results, *closing)
    return losses, gradients


def _reduced(
    graph: list[Tensor], labels: Tensor, ignore_index: int, losses: Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """The sum or mean of the losses, and its gradient in the sum."""
    value, factor = losses.new_empty(()), losses.new_empty(())
    _backend.native().reduce_losses(
        prepare(graph),
        labels.contiguous(),
        ignore_index,
        losses,
        reduction == "mean",
        value,
        factor,
        _backend.allocator(losses),
        *_backend.launch_args(losses),
    )
    return value, factor


def _fake_scale_all(
    gradients: list[Tensor], factors: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    return [gradient.new_empty(gradient.shape, dtype=dtype) for gradient in gradients]


@operator(fake=_fake_scale_all)
def scale_all(gradients: list[Tensor], factors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Gradients times two scalars, in dtype; an operator: differentiating it is an error.

    Gradients and factors are in the dtype of the sums of `dtype`.
    """
    if not _backend.uses_cuda_kernels(factors[0]):
        scaled = torch._foreach_mul(gradients, factors[0] * factors[1])
        return [gradient.to(dtype) for gradient in scaled]
    results = _fake_scale_all(gradients, factors, dtype)
    _backend.native().scale_arrays(
        [gradient.contiguous() for gradient in gradients],
        factors,
        results,
        *_backend.launch_args(factors[0]),
    )
    return results
