"""Operator `range_box_edges`: both directions of the graph of a range box, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._registration import operator

Edges = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


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


def num_dilated_box_edges(
    height: int, width: int, top: int, bottom: int, left: int, right: int, step: int
) -> int:
    """The number of edges of a range box with a step, in O(offsets of a row and of a column)."""

    def pairs(size: int, low: int, high: int) -> int:
        offsets = range(-(-low // step) * step, high + 1, step)
        return sum(max(0, size - abs(offset)) for offset in offsets)

    total = pairs(height, top, bottom) * pairs(width, left, right)
    contains_origin = top <= 0 <= bottom and left <= 0 <= right
    return total - height * width if contains_origin else total


def empty_edges(num_nodes: int, num_edges: int | torch.SymInt, device: torch.device) -> Edges:
    """Room for what `range_box_edges` returns."""
    return (
        torch.empty(num_nodes + 1, dtype=torch.int64, device=device),
        torch.empty(num_edges, dtype=torch.int32, device=device),
        torch.empty(num_nodes + 1, dtype=torch.int64, device=device),
        torch.empty(num_edges, dtype=torch.int32, device=device),
        torch.empty(num_edges, dtype=torch.int64, device=device),
        torch.empty(num_edges, dtype=torch.int32, device=device),
    )


def _allocate(
    height: int, width: int, top: int, bottom: int, left: int, right: int, device: torch.device
) -> Edges:
    num_edges = num_range_box_edges(height, width, top, bottom, left, right)
    return empty_edges(height * width, num_edges, device)


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
        reverse_edges int64 [E], the position of each in-edge in targets. Then sources int32 [E],
        the other end of each of targets.
    """
    edges = _allocate(height, width, top, bottom, left, right, device)
    _backend.native().range_box_edges(
        height, width, top, bottom, left, right, *edges, *_backend.launch_args(edges[0])
    )
    return edges


def dilated_box_edges(
    height: int,
    width: int,
    top: int,
    bottom: int,
    left: int,
    right: int,
    step: int,
    device: torch.device,
) -> Edges:
    """As `range_box_edges`, of those neighbours alone whose offsets are multiples of `step`.

    In PyTorch, as it is needed once a grid; some 50 bytes an edge are alive at a time.
    """

    def neighbours(size: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        """First neighbour of each position of an axis, and how many there are, int64 [size]."""
        position = torch.arange(size, device=device)
        first = position - -low // step * step
        last = position + high // step * step
        first += (step - 1 - first).clamp(min=0) // step * step
        last -= (step - size + last).clamp(min=0) // step * step
        return first, ((last - first) // step + 1).clamp(min=0)

    first_row, rows = neighbours(height, top, bottom)
    first_column, columns = neighbours(width, left, right)
    counts = (rows[:, None] * columns).flatten()
    sources = torch.arange(height * width, device=device).repeat_interleave(counts)
    own_row, own_column = sources // width, sources % width
    place = torch.arange(sources.shape[0], device=device) - (counts.cumsum(0) - counts)[sources]
    row = first_row[own_row] + place // columns[own_column] * step
    column = first_column[own_column] + place % columns[own_column] * step
    targets = row * width + column
    if top <= 0 <= bottom and left <= 0 <= right:
        others = targets != sources
        sources, targets = sources[others], targets[others]
    reverse_edges = torch.sort(targets, stable=True).indices

    def row_offsets(ends: Tensor) -> Tensor:
        degrees = ends.bincount(minlength=height * width)
        return torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])

    return (
        row_offsets(sources),
        targets.int(),
        row_offsets(targets),
        sources[reverse_edges].int(),
        reverse_edges,
        sources.int(),
    )
