"""Plain PyTorch twin of `deepcrf_ext.ops.range_box_edges`."""

from __future__ import annotations

import torch
from torch import Tensor


def range_box_edges(
    height: int, width: int, top: int, bottom: int, left: int, right: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Every pair of nodes, filtered: O(N²) memory. Arguments and results as the operator's."""
    node = torch.arange(height * width, device=device)
    row, column = node // max(width, 1), node % max(width, 1)
    row_step = row[None, :] - row[:, None]
    column_step = column[None, :] - column[:, None]
    joined = (top <= row_step) & (row_step <= bottom)
    joined &= (left <= column_step) & (column_step <= right)
    joined &= node[None, :] != node[:, None]

    source, target = joined.nonzero(as_tuple=True)
    reverse_target, reverse_source = joined.T.nonzero(as_tuple=True)
    position = torch.zeros(joined.shape, dtype=torch.int64, device=device)
    position[source, target] = torch.arange(source.numel(), device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    return (
        torch.cat([zero, joined.sum(1).cumsum(0)]),
        target.int(),
        torch.cat([zero, joined.sum(0).cumsum(0)]),
        reverse_source.int(),
        position[reverse_source, reverse_target],
        source.int(),
    )
