"""The graphs of relations over grids of nodes, kept for the next call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from deepcrf_ext.errors import InputError
from deepcrf_ext.nn.relations import RelationConfig
from deepcrf_ext.ops._available_memory import available_memory
from deepcrf_ext.ops._device_cache import DeviceCache
from deepcrf_ext.ops._flat_tensors import graph_tensors
from deepcrf_ext.ops._registration import operator
from deepcrf_ext.ops.graph import EdgeGraph, RangeBox
from deepcrf_ext.ops.range_box_edges import Edges, empty_edges


class GraphMemoryError(InputError):
    """A graph would take more than a third of the memory that is left."""


_CACHE: DeviceCache[EdgeGraph] = DeviceCache(256 << 20, graph_tensors)


def relation_graph(
    relation: RelationConfig, batch: int, height: int, width: int, device: torch.device
) -> EdgeGraph:
    """The edges of a batch of equal grids; nodes are numbered image by image, row by row.

    Graphs are kept for the next call with the same arguments, up to 256 MB of them. In compiled or
    exported code they are built anew for the sizes met.

    Raises GraphMemoryError where it would not fit.
    """
    if torch.compiler.is_compiling():
        return EdgeGraph(
            *relation_edges(
                relation.kind, relation.width, relation.height, relation.offsets, relation.step,
                batch, height, width, device,
            )
        )  # fmt: skip
    box = relation.box(height, width)
    key = (box, batch, height, width, device)
    return _CACHE.get_or_build(key, device, lambda: _build(box, batch, height, width, device))


def graph_bytes(box: RangeBox, batch: int, height: int, width: int) -> int:
    """What the graph of a box over a batch of grids takes, in bytes, with its edges by target."""
    return batch * (20 * box.num_edges(height, width) + 16 * height * width)


def check_memory(box: RangeBox, batch: int, height: int, width: int, device: torch.device) -> None:
    """Raises GraphMemoryError where the graph of a batch of grids would not fit."""
    num_bytes = graph_bytes(box, batch, height, width)
    available = available_memory(device)
    # Building takes up to three times the graph, and so do losses over its edges.
    if available is not None and 3 * num_bytes > available:
        raise GraphMemoryError(
            f"relation: a box of {box.bottom - box.top + 1} x {box.right - box.left + 1} offsets "
            f"on {batch} x {height} x {width} nodes has "
            f"{batch * box.num_edges(height, width):,} edges, "
            f"{num_bytes / 1e9:.1f} GB, must be at most a third of the {available / 1e9:.1f} GB "
            f"of memory available on {device}: take a coarser or smaller grid, fewer images at a "
            "time, a smaller box, or a box with a larger step"
        )


def _build(box: RangeBox, batch: int, height: int, width: int, device: torch.device) -> EdgeGraph:
    check_memory(box, batch, height, width, device)
    if batch == 0:
        return EdgeGraph.from_range_box(0, 0, box, device)
    return EdgeGraph.batch([EdgeGraph.from_range_box(height, width, box, device)] * batch)


def _relation(
    kind: str, width: float, height: float, offsets: Sequence[int] | None, step: int
) -> RelationConfig:
    four = None if offsets is None else tuple(offsets)
    return RelationConfig(kind, width, height, four, step)  # type: ignore[arg-type]


def _dynamic_size() -> int | torch.SymInt | None:
    """A size that is known when the graph runs; None where it may hold none of them, as under
    `torch.compile` without ``fullgraph=True``."""
    try:
        return torch.library.get_ctx().new_dynamic_size()
    except DynamicOutputShapeException:
        return None


def _allocate(
    kind: str,
    box_width: float,
    box_height: float,
    offsets: Sequence[int] | None,
    step: int,
    batch: int,
    height: int,
    width: int,
    device: torch.device,
) -> Edges:
    known = all(isinstance(size, int) for size in (batch, height, width))
    num_edges = None if known else _dynamic_size()
    if num_edges is None:  # of these sizes, the only ones of this graph
        batch, height, width = int(batch), int(height), int(width)
        box = _relation(kind, box_width, box_height, offsets, step).box(height, width)
        num_edges = batch * box.num_edges(height, width)
    return empty_edges(batch * height * width, num_edges, device)


@operator(fake=_allocate)
def relation_edges(
    kind: str,
    box_width: float,
    box_height: float,
    offsets: Sequence[int] | None,
    step: int,
    batch: int,
    height: int,
    width: int,
    device: torch.device,
) -> Edges:
    """The tensors of `relation_graph`, for a `RelationConfig` given by its fields.

    An operator, so that tracing with symbolic sizes need not follow how a box becomes edges.
    """
    box = _relation(kind, box_width, box_height, offsets, step).box(height, width)
    return cast(Edges, tuple(graph_tensors(_build(box, batch, height, width, device))))
