"""Table potentials, the pairwise energies of any network: this package against plain PyTorch.

    python benchmarks/bench_tables.py [--device cuda] [--cases '["loss 28x36 K=21"]']

The table, K² energies an edge, is in memory before the clock starts, and all work is reading and
writing it: the floor is one reading an iteration of mean field and one of the loss, and for a
gradient another, where the loss is, and one writing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cases import Case
from contenders import add_messages
from harness import measure, print_table, run_command, sweep, write_results
from peak import ceilings
from torch import Tensor
from torch.nn import functional as F

import deepcrf_ext as dc

ITERATIONS = 2
WORK = ("mean_field", "mean_field+gradient", "loss")
SIZES = ("14x18 K=21", "28x36 K=21", "28x36 K=60", "28x36 K=21 bfloat16")
CASES = tuple(f"{work} {size}" for size in SIZES for work in WORK)


@dataclass(frozen=True)
class TableCase:
    """What is computed, over a surrounding relation of height x width nodes with K labels."""

    work: str
    size: Case

    @classmethod
    def parse(cls, name: str) -> TableCase:
        match = re.fullmatch(r"(\S+) (\d+)x(\d+) K=(\d+)( bfloat16)?", name)
        if match is None or match[1] not in WORK:
            raise ValueError(
                f"cases: got {name!r}, must read like 'loss 28x36 K=21' or 'loss 28x36 K=21 "
                f"bfloat16', beginning with one of {', '.join(WORK)}"
            )
        height, width, labels = (int(number) for number in match.groups()[1:4])
        dtype = "bfloat16" if match[5] else "float32"
        return cls(match[1], Case(height, width, labels, dtype=dtype))


def mean_field_eager(unary: Tensor, potential: dc.TablePotential, iterations: int) -> Tensor:
    """Mean field by products of every edge's table."""
    first, second = potential.graph.edge_index()
    marginals = (-unary).softmax(1)
    for _ in range(iterations):
        energies = add_messages(unary, potential.table, marginals, first, second)
        marginals = (-energies).softmax(1)
    return marginals


def loss_eager(potential: dc.TablePotential, labels: Tensor) -> Tensor:
    """The piecewise loss by torch's cross-entropy over label pairs."""
    first, second = potential.graph.edge_index()
    truth = labels[first] * potential.num_labels + labels[second]
    return F.cross_entropy(-potential.table.flatten(1), truth)


def mean_field(unary: Tensor, potential: dc.TablePotential, iterations: int) -> Tensor:
    """This package's."""
    return dc.mean_field(unary, [potential], iterations)


CONTENDERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "deepcrf_ext": (mean_field, dc.pairwise_nll),
    "eager": (mean_field_eager, loss_eager),
    "torch.compile": (torch.compile(mean_field_eager), torch.compile(loss_eager)),
}


def make_call(case: TableCase, contender: str, device: torch.device) -> Callable[[], Tensor]:
    """What is timed: gives marginals, or the gradient of the table."""
    torch.manual_seed(0)
    graph, labels = case.size.graph(device), case.size.labels
    gradient = case.work != "mean_field"
    dtype = getattr(torch, case.size.dtype)
    table = torch.randn(graph.num_edges, labels, labels).to(device, dtype).requires_grad_(gradient)
    unary = torch.randn(graph.num_nodes, labels).to(device, dtype)
    truth = torch.randint(labels, (graph.num_nodes,)).to(device)
    potential = dc.TablePotential(graph, table)
    inference, loss = CONTENDERS[contender]
    if case.work == "mean_field":
        return lambda: inference(unary, potential, ITERATIONS)
    if case.work == "loss":
        return lambda: torch.autograd.grad(loss(potential, truth), table)[0]

    def step() -> Tensor:
        marginals = inference(unary, potential, ITERATIONS)
        return torch.autograd.grad(F.nll_loss(marginals.log(), truth), table)[0]

    return step


def main(
    device: str = "cpu",
    cases: Sequence[str] = CASES,
    contenders: Sequence[str] = tuple(CONTENDERS),
    seconds: float = 1.0,
    worker: bool = False,
) -> None:
    """Measures, prints a table and writes the record `tables`.

    Args:
        device: cpu or cuda.
        cases: "WORK HEIGHTxWIDTH K=labels" of float32, or with " bfloat16"; WORK one of
            mean_field, mean_field+gradient, loss.
        contenders: which of deepcrf_ext, eager, torch.compile.
        seconds: time to repeat each measurement for.
        worker: measure the one case and contender in this process.
    """
    where = torch.device(device)
    if worker:
        call = make_call(TableCase.parse(cases[0]), contenders[0], where)
        print(json.dumps(measure(call, where, seconds)))
        return
    sizes = {name: TableCase.parse(name).size.table_bytes() for name in cases}
    measurements = sweep(
        __file__, device, cases, contenders, seconds, lambda case, contender: 6.0 * sizes[case]
    )
    print_table("table potentials", measurements, "eager")
    print(write_results("tables", where, measurements, ceilings=ceilings(where), table_bytes=sizes))


if __name__ == "__main__":
    run_command(main)
