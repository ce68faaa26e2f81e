"""Mean field, 2 iterations, no gradient: this package against plain PyTorch.

    python benchmarks/bench_meanfield.py [--device cuda] [--cases '["28x36 K=21 D=512 float32"]']

Work of one iteration, both directions of E edges over N nodes: 4·E·D·K operations for the
accumulators and 4·N·D·K² for the contraction with W; the tables of the eager version take
2·E·D·K² once and 4·E·K² bytes, read twice an iteration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import Case, make_problem
from contenders import mean_field_chunked, mean_field_eager
from harness import (
    copy_bandwidth,
    matmul_rate,
    measure,
    plot_scaling,
    print_table,
    sweep,
    write_results,
)
from jsonargparse import auto_cli

import deepcrf_ext as dc

ITERATIONS = 2
CASES = (
    Case(14, 18, 21),
    Case(28, 36, 21),
    Case(56, 75, 21),
    Case(28, 36, 60),
    Case(14, 18, 150),
)
CONTENDERS: dict[str, Callable[..., Any]] = {
    "deepcrf_ext": lambda unary, potential, n: dc.mean_field(unary, [potential], n),
    "eager": mean_field_eager,
    "torch.compile": torch.compile(mean_field_eager),
    "chunked": mean_field_chunked,
}


def operations(case: Case) -> float:
    """Multiplications and additions of the factored algorithm."""
    nodes, edges = case.height * case.width, case.num_edges()
    accumulate = edges * case.features * case.labels
    contract = nodes * case.features * case.labels**2
    return 4.0 * ITERATIONS * (accumulate + contract)


def needed_bytes(case: str, contender: str) -> float:
    """Memory that a contender is known to need, as a multiple of the tables of energies."""
    return 2.5 * Case.parse(case).table_bytes() if contender in ("eager", "torch.compile") else 0.0


def run_worker(case: Case, contender: str, device: torch.device, seconds: float) -> None:
    potential, unary, _ = make_problem(case, device, requires_grad=False)
    call = CONTENDERS[contender]
    with torch.no_grad():
        print(json.dumps(measure(lambda: call(unary, potential, ITERATIONS), device, seconds)))


def main(
    device: str = "cpu",
    cases: Sequence[str] = tuple(case.name for case in CASES),
    contenders: Sequence[str] = tuple(CONTENDERS),
    seconds: float = 2.0,
    worker: bool = False,
) -> None:
    """Measures, prints a table and writes results/meanfield-DEVICE.json and .png.

    Args:
        device: cpu or cuda.
        cases: sizes, as "HEIGHTxWIDTH K=labels D=features dtype".
        contenders: which of deepcrf_ext, eager, torch.compile, chunked.
        seconds: time to repeat each measurement for.
        worker: measure the one case and contender in this process.
    """
    where = torch.device(device)
    if worker:
        run_worker(Case.parse(cases[0]), contenders[0], where, seconds)
        return
    measurements = sweep(__file__, device, cases, contenders, seconds, needed_bytes)
    print_table(f"mean field, {ITERATIONS} iterations", measurements, "eager")
    ceilings = {
        "copy_bytes_per_second": copy_bandwidth(where),
        "float32_matmul_operations_per_second": matmul_rate(where, torch.float32),
    }
    work = {case.name: operations(case) for case in map(Case.parse, cases)}
    print(write_results("meanfield", where, measurements, ceilings=ceilings, operations=work))
    edges = {case.name: case.num_edges() for case in map(Case.parse, cases) if case.labels == 21}
    if edges:
        print(plot_scaling("meanfield", where, measurements, edges))


if __name__ == "__main__":
    auto_cli(main)
