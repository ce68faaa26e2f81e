"""Relations as boxes of offsets, and directed graphs in compressed rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops._edge_checks import MAX_NODES, check_order, checked_edges, checked_positions
from deepcrf_ext.ops._loading import loadable
from deepcrf_ext.ops._number_checks import checked_int, checked_number
from deepcrf_ext.ops._tensor_checks import check_device, usable_device
from deepcrf_ext.ops.range_box_edges import (
    dilated_box_edges,
    num_dilated_box_edges,
    num_range_box_edges,
    range_box_edges,
)


def _fraction_of(side: int, fraction: float, name: str) -> int:
    """max(1, floor(fraction · side)), the floor with 1e-9 of slack, so that 0.2 · 5 is 1."""
    return max(1, math.floor(checked_number(name, fraction, positive=True) * side + 1e-9))


def _half_of(side: int, fraction: float, name: str) -> int:
    """`_fraction_of`, of half the fraction."""
    return _fraction_of(side, checked_number(name, fraction, positive=True) / 2, name)


def _grid_size(height: int, width: int) -> tuple[int, int]:
    """Height and width, checked."""
    height = checked_int("height", height, at_least=0)
    width = checked_int("width", width, at_least=0)
    if height * width > MAX_NODES:
        raise ValueError(f"height · width: got {height} · {width}, must be at most {MAX_NODES}")
    return height, width


@dataclass(frozen=True)
class RangeBox:
    """A relation on a grid: node p is joined to every q whose offset q - p lies in the box.

    All four are inclusive integer offsets, rows growing downward. The box may lie anywhere; the
    offset (0, 0) never makes an edge (a node is not its own neighbour).

    Attributes:
        top: First row offset of q from p.
        bottom: Last row offset.
        left: First column offset.
        right: Last column offset.
        step: Only offsets that are multiples of it in both directions count, as in a dilated
            convolution: a box reaches far with few edges.

    Raises:
        TypeError: An offset is not an integer.
        ValueError: The box is inverted, or step is below 1.

    Example:
        >>> import deepcrf_ext as dc
        >>> dc.RangeBox.surrounding(10, 15)
        RangeBox(top=-2, bottom=2, left=-2, right=2, step=1)
    """

    top: int
    bottom: int
    left: int
    right: int
    step: int = 1

    def __post_init__(self) -> None:
        for name in ("top", "bottom", "left", "right"):
            object.__setattr__(self, name, checked_int(name, getattr(self, name)))
        object.__setattr__(self, "step", checked_int("step", self.step, at_least=1))
        if self.top > self.bottom:
            raise ValueError(f"top: got {self.top}, must be at most bottom = {self.bottom}")
        if self.left > self.right:
            raise ValueError(f"left: got {self.left}, must be at most right = {self.right}")

    @classmethod
    def surrounding(cls, height: int, width: int, size: float = 0.4) -> RangeBox:
        """The paper's "surrounding" relation: a square box centred on the node (section 3.2).

        Args:
            height: Rows of the grid.
            width: Columns of the grid.
            size: Side of the box, as a fraction of the grid's short side.
        """
        height, width = _grid_size(height, width)
        half = _half_of(min(height, width), size, "size")
        return cls(-half, half, -half, half)

    @classmethod
    def above_below(
        cls, height: int, width: int, box_width: float = 0.3, box_height: float = 0.4
    ) -> RangeBox:
        """The paper's "above/below" relation (section 3.2).

        In an edge (p, q), p is the upper node: the paper's box stands on q, its bottom edge centred
        there, and holds p. Seen from p, q lies in the mirrored box below.

        Args:
            height: Rows of the grid.
            width: Columns of the grid.
            box_width: Width of the box, as a fraction of the grid's short side.
            box_height: Height of the box, as a fraction of the grid's short side.
        """
        height, width = _grid_size(height, width)
        short_side = min(height, width)
        half = _half_of(short_side, box_width, "box_width")
        rows = _fraction_of(short_side, box_height, "box_height")
        return cls(1, rows, -half, half)

    @classmethod
    def left_right(
        cls, height: int, width: int, box_width: float = 0.4, box_height: float = 0.3
    ) -> RangeBox:
        """As `above_below`, turned to the side: in an edge (p, q), p is the node on the left.

        Args:
            height: Rows of the grid.
            width: Columns of the grid.
            box_width: Width of the box, as a fraction of the grid's short side.
            box_height: Height of the box, as a fraction of the grid's short side.
        """
        turned = cls.above_below(height, width, box_width=box_height, box_height=box_width)
        return cls(turned.left, turned.right, turned.top, turned.bottom)

    def clipped(self, height: int, width: int) -> tuple[int, int, int, int]:
        """top, bottom, left and right, without what lies off every grid of this size."""
        top, bottom = (max(-height, min(height, offset)) for offset in (self.top, self.bottom))
        left, right = (max(-width, min(width, offset)) for offset in (self.left, self.right))
        return top, bottom, left, right

    def num_edges(self, height: int, width: int) -> int:
        """How many edges its graph over a grid of height × width nodes has, without building it."""
        height, width = _grid_size(height, width)
        sides = self.clipped(height, width)
        if self.step == 1:
            return num_range_box_edges(height, width, *sides)
        return num_dilated_box_edges(height, width, *sides, self.step)

    def __reduce__(self) -> tuple[Any, ...]:
        return _range_box, (self.top, self.bottom, self.left, self.right, self.step)


@loadable
def _range_box(*values: Any) -> RangeBox:
    return RangeBox(*values)


@dataclass(frozen=True, eq=False, repr=False)
class EdgeGraph:
    """A directed graph, its edges sorted by (source, target) and stored in compressed rows.

    The edges of node p are `targets[row_offsets[p]:row_offsets[p + 1]]`; the edges into it come
    from `reverse_sources[reverse_row_offsets[p]:reverse_row_offsets[p + 1]]`. Made by
    `from_range_box`, `from_edges` or `batch`. N nodes, E edges.

    Attributes:
        row_offsets: int64 [N+1].
        targets: int32 [E].
        reverse_row_offsets: int64 [N+1].
        reverse_sources: int32 [E], sorted by (target, source).
        reverse_edges: int64 [E], the position in `targets` of each edge of `reverse_sources`.
        sources: int32 [E], the node that each of `targets` is a neighbour of: what `row_offsets`
            says, without a search.
        edge_order: int64 [E] for a graph of `from_edges`: the position of each edge in the input.
            None for a range box.
        num_self_loops: how many edges (p, p) there are; none for a range box.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> graph = dc.EdgeGraph.from_edges(torch.tensor([1, 0]), torch.tensor([2, 1]), num_nodes=3)
        >>> graph.edge_index().tolist()
        [[0, 1], [1, 2]]
    """

    row_offsets: Tensor
    targets: Tensor
    reverse_row_offsets: Tensor
    reverse_sources: Tensor
    reverse_edges: Tensor
    sources: Tensor
    edge_order: Tensor | None = None
    num_self_loops: int = 0

    @classmethod
    def from_range_box(
        cls, height: int, width: int, box: RangeBox, device: torch.device | str = "cpu"
    ) -> EdgeGraph:
        """The graph of a relation over a grid of height × width nodes in row-major order.

        Raises:
            ValueError: A size is negative, N reaches 2³¹, or the device cannot be used.
        """
        height, width = _grid_size(height, width)
        if not isinstance(box, RangeBox):
            raise TypeError(f"box: got {type(box).__name__}, must be a RangeBox")
        top, bottom, left, right = box.clipped(height, width)
        device = usable_device(device)
        if box.step == 1:
            return cls(*range_box_edges(height, width, top, bottom, left, right, device))
        return cls(*dilated_box_edges(height, width, top, bottom, left, right, box.step, device))

    @classmethod
    def from_edges(cls, source_index: Tensor, target_index: Tensor, num_nodes: int) -> EdgeGraph:
        """Any graph, duplicate edges and self loops included.

        Edges are sorted by (source, target), duplicates in input order. `edge_order` says where
        each came from: `energies[graph.edge_order]` brings values from input order into the
        graph's.

        Args:
            source_index: Integer [E], each in 0..num_nodes-1.
            target_index: Integer [E], on the same device.
            num_nodes: Number of nodes, isolated ones included.

        Raises:
            TypeError: An index tensor is no integer tensor, or num_nodes no integer.
            ValueError: Shapes, devices or index ranges do not fit.
        """
        source, target, num_nodes = checked_edges(source_index, target_index, num_nodes)
        edge_order = torch.sort(source * num_nodes + target, stable=True).indices
        source, target = source[edge_order], target[edge_order]
        reverse_edges = torch.sort(target * num_nodes + source, stable=True).indices
        return cls._of_sorted(source, target, num_nodes, reverse_edges, edge_order)

    @classmethod
    def _of_sorted(
        cls,
        source: Tensor,
        target: Tensor,
        num_nodes: int,
        reverse_edges: Tensor,
        edge_order: Tensor | None,
    ) -> EdgeGraph:
        """The graph of edges that are sorted, all int64."""
        nodes = torch.arange(num_nodes + 1, device=source.device)
        return cls(
            torch.searchsorted(source, nodes),
            target.int(),
            torch.searchsorted(target[reverse_edges], nodes),
            source[reverse_edges].int(),
            reverse_edges,
            source.int(),
            edge_order,
            (source == target).sum().item(),  # type: ignore[arg-type]
        )

    @classmethod
    def batch(cls, graphs: Sequence[EdgeGraph]) -> EdgeGraph:
        """The disjoint union: the nodes (and edges) of each graph follow those of the one before.

        Raises:
            TypeError: `graphs` is no sequence of graphs.
            ValueError: No graph is given, or their devices differ, or they have 2³¹ nodes or more.
        """
        if not isinstance(graphs, Iterable):
            raise TypeError(f"graphs: got {type(graphs).__name__}, must be a sequence of graphs")
        graphs = list(graphs)
        if not graphs:
            raise ValueError("graphs: got none, must hold at least one graph")
        for i, graph in enumerate(graphs):
            if not isinstance(graph, EdgeGraph):
                raise TypeError(f"graphs[{i}]: got {type(graph).__name__}, must be an EdgeGraph")
            check_device(f"graphs[{i}]", graph.device, graphs[0].device, "graphs[0]")
        num_nodes = sum(graph.num_nodes for graph in graphs)
        if num_nodes > MAX_NODES:
            raise ValueError(
                f"graphs: got {num_nodes}, must have at most {MAX_NODES} nodes together"
            )
        if len(graphs) == 1:
            return graphs[0]

        first_node, first_edge = [0], [0]
        for graph in graphs:
            first_node.append(first_node[-1] + graph.num_nodes)
            first_edge.append(first_edge[-1] + graph.num_edges)

        def joined(name: str, shifts: list[int]) -> Tensor:
            return torch.cat(
                [getattr(graph, name) + shift for graph, shift in zip(graphs, shifts, strict=False)]
            )

        def joined_offsets(name: str) -> Tensor:
            parts = [
                getattr(graph, name)[:-1] + shift
                for graph, shift in zip(graphs, first_edge, strict=False)
            ]
            return torch.cat([*parts, parts[0].new_tensor([first_edge[-1]])])

        edge_order = None
        if any(graph.edge_order is not None for graph in graphs):
            edge_order = torch.cat(
                [
                    torch.arange(shift, shift + graph.num_edges, device=graph.device)
                    if graph.edge_order is None
                    else graph.edge_order + shift
                    for graph, shift in zip(graphs, first_edge, strict=False)
                ]
            )
        return cls(
            joined_offsets("row_offsets"),
            joined("targets", first_node),
            joined_offsets("reverse_row_offsets"),
            joined("reverse_sources", first_node),
            joined("reverse_edges", first_edge),
            joined("sources", first_node),
            edge_order,
            sum(graph.num_self_loops for graph in graphs),
        )

    @property
    def num_nodes(self) -> int:
        """N, isolated nodes included."""
        return self.row_offsets.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """E."""
        return self.targets.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the graph's tensors are."""
        return self.targets.device

    def edge_index(self) -> Tensor:
        """Sources and targets, int64 [2, E], sorted by (source, target)."""
        return torch.stack([self.sources, self.targets]).long()

    def to(self, device: torch.device | str) -> EdgeGraph:
        """The same graph on another device; itself where it is there already."""
        device = usable_device(device)
        if device == self.device:
            return self
        return EdgeGraph(
            self.row_offsets.to(device),
            self.targets.to(device),
            self.reverse_row_offsets.to(device),
            self.reverse_sources.to(device),
            self.reverse_edges.to(device),
            self.sources.to(device),
            None if self.edge_order is None else self.edge_order.to(device),
            self.num_self_loops,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Of copies: sending a tensor to another process moves its memory, which layers that keep
        a graph for later calls may be reading."""
        edge_order = None if self.edge_order is None else self.edge_order.clone()
        return _loaded_graph, (
            self.sources.clone(),
            self.targets.clone(),
            self.num_nodes,
            self.reverse_edges.clone(),
            edge_order,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> EdgeGraph:
        """Itself, as it never changes."""
        return self

    def __repr__(self) -> str:
        return (
            f"EdgeGraph(num_nodes={self.num_nodes}, num_edges={self.num_edges}, "
            f"device='{self.device}')"
        )


@loadable
def _loaded_graph(
    sources: Tensor,
    targets: Tensor,
    num_nodes: int,
    reverse_edges: Tensor,
    edge_order: Tensor | None,
) -> EdgeGraph:
    """The graph of a file or of another process, checked in time linear in its edges."""
    source, target, num_nodes = checked_edges(sources, targets, num_nodes)
    reverse_edges = checked_positions(reverse_edges, "reverse_edges", source)
    if edge_order is not None:
        edge_order = checked_positions(edge_order, "edge_order", source)
    check_order(source, target, num_nodes, reverse_edges)
    return EdgeGraph._of_sorted(source, target, num_nodes, reverse_edges, edge_order)
