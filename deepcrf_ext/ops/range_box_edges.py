"""Operator `range_box_edges`: both directions of the graph of a range box, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._registration import operator

Edges = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _pairs_on_axis(size: int, low: int, high: int) -> int:
    """How many (i, j) in [0, size)² have low <= j - i <= high."""

    def up_to(offset: int) -> int:
        """How many have j - i <= offset."""
        if offset < 0:
            below = max(0, size + offset)
            return below * (below + 1) // 2
        above = max(0, size - 1 - offset)
        return size * size - above * (above + 1) // 2

    return up_to(high) - up_to(low - 1)


def num_range_box_edges(
    height: int, width: int, top: int, bottom: int, left: int, right: int
) -> int:
    """The number of edges of a range box, in O(1)."""
    pairs = _pairs_on_axis(height, top, bottom) * _pairs_on_axis(width, left, right)
    contains_origin = top <= 0 <= bottom and left <= 0 <= right
    return pairs - height * width if contains_origin else pairs


def _allocate(
    height: int, width: int, top: int, bottom: int, left: int, right: int, device: torch.device
) -> Edges:
    num_nodes = height * width
    num_edges = num_range_box_edges(height, width, top, bottom, left, right)
    return (
        torch.empty(num_nodes + 1, dtype=torch.int64, device=device),
        torch.empty(num_edges, dtype=torch.int32, device=device),
        torch.empty(num_nodes + 1, dtype=torch.int64, device=device),
        torch.empty(num_edges, dtype=torch.int32, device=device),
        torch.empty(num_edges, dtype=torch.int64, device=device),
    )


@operator(fake=_allocate)
def range_box_edges(
    height: int, width: int, top: int, bottom: int, left: int, right: int, device: torch.device
) -> Edges:
    """The graph that joins each node of a grid to the nodes in a box around it, itself excluded.

    Args:
        height: Rows of the grid, at least 0.
        width: Columns of the grid, at least 0; height · width < 2³¹.
        top: First row offset of the box, from -height to height, as are all four.
        bottom: Last row offset, at least `top`.
        left: First column offset.
        right: Last column offset, at least `left`.
        device: Where to build the graph.

    Returns:
        row_offsets int64 [N+1], targets int32 [E] sorted by (source, target), and the in-edges:
        reverse_row_offsets int64 [N+1], reverse_sources int32 [E] sorted by (target, source),
        reverse_edges int64 [E], the position of each in-edge in targets.
    """
    edges = _allocate(height, width, top, bottom, left, right, device)
    _backend.native().range_box_edges(
        height, width, top, bottom, left, right, *edges, *_backend.launch_args(edges[0])
    )
    return edges
