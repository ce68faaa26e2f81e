"""Checks of edges: the numbers of the nodes at their ends, and their order."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcrf_ext.ops._number_checks import checked_int
from deepcrf_ext.ops._tensor_checks import (
    check_dense,
    check_device,
    check_device_type,
    check_integer,
    have_values,
)

MAX_NODES = 2**31 - 1  # targets are int32


def checked_edges(
    source_index: Tensor, target_index: Tensor, num_nodes: int
) -> tuple[Tensor, Tensor, int]:
    """Both ends of the edges as int64 [E], and the number of nodes, checked."""
    if not torch.compiler.is_compiling():  # a size may be open there
        num_nodes = checked_int("num_nodes", num_nodes)
        if not 0 <= num_nodes <= MAX_NODES:
            raise ValueError(f"num_nodes: got {num_nodes}, must be in 0..{MAX_NODES}")
    check_dense("source_index", source_index)
    check_dense("target_index", target_index)
    check_device_type("source_index", source_index)
    check_device("target_index", target_index.device, source_index.device, "source_index")
    source = _index(source_index, "source_index", "num_nodes", num_nodes)
    target = _index(target_index, "target_index", "num_nodes", num_nodes)
    if target.shape != source.shape:
        raise ValueError(
            f"target_index: got {target.numel()}, must have the {source.numel()} edges of "
            "source_index"
        )
    return source, target, num_nodes


def _index(index: Tensor, name: str, limit_name: str, limit: int) -> Tensor:
    """Numbers of nodes or edges as int64 [E], checked to lie below the limit."""
    check_integer(name, index)
    if index.dim() != 1:
        raise ValueError(f"{name}: got {list(index.shape)}, must have shape [E]")
    index = index.long()  # first: there is little else that torch does with uint16
    if not have_values(index):
        good = index == index.clamp(0, limit - 1)
        torch._assert_async(good.all(), f"{name}: must be in 0..{limit_name}-1")
    elif index.numel() > 0:
        low, high = (int(bound) for bound in torch.aminmax(index))
        if low < 0 or high >= limit:
            raise ValueError(
                f"{name}: got {low if low < 0 else high}, must be in 0..{limit_name}-1 with "
                f"{limit_name} = {limit}"
            )
    return index


def checked_positions(positions: Tensor, name: str, edges: Tensor) -> Tensor:
    """Positions of edges, int64 [E], checked."""
    check_dense(name, positions)
    check_device(name, positions.device, edges.device, "sources")
    positions = _index(positions, name, "num_edges", edges.numel())
    if positions.shape != edges.shape:
        raise ValueError(f"{name}: got {positions.numel()}, must have {edges.numel()} edges")
    return positions


def check_order(source: Tensor, target: Tensor, num_nodes: int, reverse_edges: Tensor) -> None:
    """Check that edges are sorted by (source, target), and their positions by (target, source)."""
    in_order = torch.arange(source.numel(), device=source.device)
    if not (
        _is_ascending(source * num_nodes + target, in_order)
        and _is_ascending((target * num_nodes + source)[reverse_edges], reverse_edges)
    ):
        raise ValueError("EdgeGraph: got edges out of order in what was saved, must be sorted")


def _is_ascending(keys: Tensor, ties: Tensor) -> bool:
    """Whether keys ascend, and where they are equal the second do."""
    step = keys.diff()
    return bool(((step > 0) | ((step == 0) & (ties.diff() > 0))).all())
