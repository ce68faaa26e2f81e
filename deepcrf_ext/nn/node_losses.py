"""Losses over nodes and edges whose labels come from images, and what each counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.ops._argument_checks import checked_labels
from deepcrf_ext.ops._tensor_checks import check_tensor
from deepcrf_ext.ops.graph import EdgeGraph
from deepcrf_ext.ops.pairwise_nll import pairwise_nll
from deepcrf_ext.ops.potentials import Potential


def node_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [B, H, W] of any integer dtype at the nodes of grids of h x w: [B·h·w].

    A node takes the label of the pixel at its centre, ``floor((i + 1/2) · H / h)`` down and
    likewise across.
    """
    height, width = size
    for axis, count in ((1, height), (2, width)):
        if labels.shape[axis] != count:
            centres = 2 * torch.arange(count, device=labels.device) + 1
            labels = labels.index_select(axis, centres * labels.shape[axis] // max(2 * count, 1))
    return labels.flatten()


def checked_node_labels(
    labels: Tensor,
    grid: tuple[int, int, int],
    num_classes: int,
    ignore_index: int,
    device: torch.device,
) -> Tensor:
    """`node_labels` for grids (B, h, w), int64: B label images, 0..num_classes-1 or ignored."""
    check_tensor("labels", labels, "B H W", {"B": grid[0]})
    nodes = node_labels(labels, grid[1:])
    return checked_labels(nodes, nodes.shape[0], num_classes, ignore_index, device)[0]


def node_weights(nodes: Tensor, class_weights: Tensor | None, ignore_index: int) -> Tensor:
    """What each node counts in a loss, float64 [N]: 1, or as its class; 0 where it is ignored.

    nodes: int64 [N]. class_weights: [K] or None.
    """
    known = nodes != ignore_index
    if class_weights is None:
        return known.double()
    return known * class_weights.double()[nodes.where(known, 0)]


def edge_weights(
    graph: EdgeGraph, nodes: Tensor, class_weights: Tensor | None, ignore_index: int
) -> Tensor:
    """What each edge counts in a loss, float64 [E]: the geometric mean of its `node_weights`."""
    roots = node_weights(nodes, class_weights, ignore_index).sqrt()
    sources = roots.repeat_interleave(graph.row_offsets.diff(), output_size=graph.num_edges)
    return sources * roots[graph.targets]


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ weight · value / Σ weight, in the dtype of the values; 0 where all weights are 0."""
    total = weights.sum()
    return (weights.to(values.dtype) * values).sum() / total.where(total > 0, 1).to(values.dtype)


def node_nll(
    energies: Tensor,
    nodes: Tensor,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    smoothing: float = 0.0,
) -> Tensor:
    """Softmax negative log-likelihood of labels [N] at energies [N, K], mean over valid nodes.

    0 where nothing is valid. class_weights: see `node_weights`. smoothing: the share of a node's
    label that is spread over all classes alike (Szegedy et al., arXiv:1512.00567, section 7).
    """
    values = functional.cross_entropy(
        -energies,
        nodes,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=smoothing,
    )
    return weighted_mean(values, node_weights(nodes, class_weights, ignore_index))


def edge_nll(
    potential: Potential, nodes: Tensor, class_weights: Tensor | None, ignore_index: int
) -> Tensor:
    """`pairwise_nll` of labels [N], mean over valid edges, weighted by `edge_weights`.

    0 where nothing is valid.
    """
    if class_weights is None:
        return pairwise_nll(potential, nodes, ignore_index)
    values = pairwise_nll(potential, nodes, ignore_index, reduction="none")
    return weighted_mean(values, edge_weights(potential.graph, nodes, class_weights, ignore_index))
