"""Building the graph of a range box, both directions: this package against plain PyTorch.

    python benchmarks/bench_edges.py [--device cuda]

The graph takes 16 bytes an edge (targets, reverse sources, reverse edges) and 16 a node, each
written once: the floor is that over the copy bandwidth's write half.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import Case
from harness import measure, print_table, run_command, sweep, write_results
from peak import ceilings

import deepcrf_ext as dc

CASES = (Case(14, 18, 1), Case(28, 36, 1), Case(56, 75, 1), Case(90, 120, 1))


def edges_eager(height: int, width: int, box: dc.RangeBox, device: torch.device) -> dc.EdgeGraph:
    """All offsets of the box at every node, those outside dropped, and a sorted reverse graph."""
    nodes = torch.arange(height * width, device=device)
    rows = torch.arange(box.top, box.bottom + 1, device=device)
    columns = torch.arange(box.left, box.right + 1, device=device)
    row = (nodes // width)[:, None, None] + rows[:, None]
    column = (nodes % width)[:, None, None] + columns
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    target = row * width + column
    inside &= target != nodes[:, None, None]
    source = nodes[:, None, None].expand_as(target)[inside]
    return dc.EdgeGraph.from_edges(source, target[inside], height * width)


CONTENDERS: dict[str, Callable[..., Any]] = {
    "deepcrf_ext": dc.EdgeGraph.from_range_box,
    "eager": edges_eager,
}


def make_call(case: Case, contender: str, device: torch.device) -> Callable[[], Any]:
    """What is timed."""
    build = CONTENDERS[contender]
    box = dc.RangeBox.surrounding(case.height, case.width)
    return lambda: build(case.height, case.width, box, device)


def main(
    device: str = "cpu",
    cases: Sequence[str] = tuple(case.name for case in CASES),
    contenders: Sequence[str] = tuple(CONTENDERS),
    seconds: float = 1.0,
    worker: bool = False,
) -> None:
    """Measures, prints a table and writes the record `edges`.

    Args:
        device: cpu or cuda.
        cases: sizes, as "HEIGHTxWIDTH K=labels D=features dtype"; only the grid matters.
        contenders: which of deepcrf_ext, eager.
        seconds: time to repeat each measurement for.
        worker: measure the one case and contender in this process.
    """
    where = torch.device(device)
    if worker:
        call = make_call(Case.parse(cases[0]), contenders[0], where)
        print(json.dumps(measure(call, where, seconds)))
        return
    measurements = sweep(__file__, device, cases, contenders, seconds)
    print_table("edges of a range box", measurements, "eager")
    sizes = {case.name: 16 * case.num_edges() for case in map(Case.parse, cases)}
    limits = ceilings(where)
    print(write_results("edges", where, measurements, ceilings=limits, output_bytes=sizes))


if __name__ == "__main__":
    run_command(main)
