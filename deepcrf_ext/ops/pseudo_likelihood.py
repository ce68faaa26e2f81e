"""Operator `pseudo_likelihood_nll`: every node's loss given the labels of all other nodes.

With the truth as one-hot marginals, the messages into a node are the pairwise energies of its
labels, so the loss is a softmax cross-entropy over `pairwise_messages`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcrf_ext.ops._argument_checks import check_reduction, check_unary, checked_labels
from deepcrf_ext.ops._autocast import accumulate_dtype, result_dtype
from deepcrf_ext.ops._flat_tensors import graph_tensors, potential_tensors
from deepcrf_ext.ops.pairwise_messages import messages
from deepcrf_ext.ops.potentials import FactoredPotential, Potential


def pseudo_likelihood_nll(
    unary: Tensor,
    potentials: Sequence[Potential],
    labels: Tensor,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-probability of every node's label given the labels of all other nodes.

    Edges to ignored nodes are dropped (arXiv:1504.01013v2, appendix). A self loop (p, p) adds
    ``V_pp(k, k)`` to label k. Differentiable once in the unary and the potentials.

    Args:
        unary: energies, [N, K].
        potentials: a list or tuple of pairwise potentials on the same N nodes and K labels, in
            the dtype of ``unary``; may be empty. Under `torch.autocast` dtypes may differ, except
            from float64.
        labels: [N], any integer dtype, 0..K-1 or ``ignore_index``.
        ignore_index: the label of nodes that drop out, with all their edges.
        reduction: "mean" over valid nodes (0 when there is none), "sum", or "none": [N] with 0
            at nodes that drop out.

    Returns:
        A scalar, or [N], in the dtype of ``unary``; under `torch.autocast` in float32, as that of
        `torch.nn.functional.cross_entropy`. Sums are taken in float32 at least.
        `torch.set_float32_matmul_precision` holds as in `pairwise_messages`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> graph = dc.EdgeGraph.from_edges(torch.tensor([0, 1]), torch.tensor([1, 2]), num_nodes=3)
        >>> potts = dc.TablePotential(graph, (1 - torch.eye(2)).expand(2, 2, 2))
        >>> dc.pseudo_likelihood_nll(torch.zeros(3, 2), [potts], torch.tensor([0, 0, 1]))
        tensor(0.7732)
    """
    check_unary(unary, potentials)
    check_reduction(reduction)
    num_nodes, num_labels = unary.shape
    labels, ignore_index = checked_labels(labels, num_nodes, num_labels, ignore_index, unary.device)
    known = labels != ignore_index
    energies = unary.to(accumulate_dtype(unary.dtype))  # not rounded until all is summed
    classes = torch.arange(num_labels, device=labels.device)
    truth = ((labels[:, None] == classes) & known[:, None]).to(energies.dtype)
    for potential in potentials:
        tensors = potential_tensors(potential)
        energies = energies + messages(graph_tensors(potential.graph), tensors, truth, False)
        if potential.graph.num_self_loops:
            with torch.autocast(unary.device.type, enabled=False):
                wide = type(potential)(potential.graph, *(t.to(truth.dtype) for t in tensors))
                energies = energies + _self_loop_correction(wide, truth)
    losses = F.cross_entropy(-energies, labels, ignore_index=ignore_index, reduction="none")
    if reduction == "mean":
        losses = losses.sum() / known.sum().clamp(min=1)
    elif reduction == "sum":
        losses = losses.sum()
    return losses.to(result_dtype(unary.dtype, unary.device))


def _self_loop_correction(potential: Potential, truth: Tensor) -> Tensor:
    """[N, K]: takes the two messages of every self loop out and puts its own energies in."""
    sources, targets = potential.graph.edge_index()
    numbers = torch.arange(1, potential.graph.num_self_loops + 1, device=truth.device)
    loops = torch.searchsorted((sources == targets).cumsum(0), numbers)
    nodes = sources[loops]
    if isinstance(potential, FactoredPotential):
        energies = potential.energies_between(nodes, nodes)
    else:
        energies = potential.energies()[loops]
    messages = torch.einsum("lkj,lj->lk", energies, truth[nodes]) + torch.einsum(
        "lkj,lk->lj", energies, truth[nodes]
    )
    own = energies.diagonal(dim1=1, dim2=2)
    return torch.zeros_like(truth).index_add(0, nodes, own - messages)
