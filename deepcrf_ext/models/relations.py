"""Relations between the nodes of a grid as edge graphs (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from deepcrf_ext.config import RelationConfig
from deepcrf_ext.graph import EdgeGraph, RangeBox


def relation_box(relation: RelationConfig, height: int, width: int) -> RangeBox:
    """The box of neighbours on a grid of height x width nodes."""
    if relation.offsets is not None:
        return RangeBox(*relation.offsets, step=relation.step)
    size = {"box_width": relation.width, "box_height": relation.height}
    if relation.kind == "surrounding":
        box = RangeBox.surrounding(height, width, size=relation.width)
    elif relation.kind == "above_below":
        box = RangeBox.above_below(height, width, **size)
    else:
        box = RangeBox.left_right(height, width, **size)
    return replace(box, step=relation.step)


@lru_cache(maxsize=64)
def relation_graph(
    relation: RelationConfig, batch: int, height: int, width: int, device: torch.device
) -> EdgeGraph:
    """The edges of a batch of equal grids; nodes are numbered image by image, row by row."""
    box = relation_box(relation, height, width)
    graph = EdgeGraph.from_range_box(height, width, box)
    return EdgeGraph.batch([graph] * batch).to(device)
