"""Pairwise loss, forward and backward: this package against plain PyTorch.

    python benchmarks/bench_pairwise_loss.py [--precision medium] [--device cuda] \\
        [--cases '["28x36 K=21 D=512 bfloat16"]']

Every version computes the E·D·K² product three times (energies, gradient of the hidden vectors,
gradient of W): 6·E·D·K² operations. Eager PyTorch keeps several E·K² arrays; this package one tile.
Plain PyTorch is left out in bfloat16 where its products are much slower than in float32, as without
AVX-512.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import Case, make_problem, scaling_edges
from contenders import loss_chunked, loss_eager
from harness import measure, plot_scaling, print_table, run_command, sweep, write_results
from peak import ceilings, without_slow_bfloat16

import deepcrf_ext as dc

DTYPES = ("float32", "bfloat16")
CASES = tuple(
    case
    for dtype in DTYPES
    for case in (
        Case(14, 18, 21, dtype=dtype),
        Case(28, 36, 21, dtype=dtype),
        Case(28, 36, 60, dtype=dtype),
        Case(14, 18, 150, dtype=dtype),
    )
)
CONTENDERS: dict[str, Callable[..., Any]] = {
    "deepcrf_ext": dc.pairwise_nll,
    "eager": loss_eager,
    "torch.compile": torch.compile(loss_eager),
    "chunked": loss_chunked,
}


def operations(case: Case) -> float:
    """Multiplications and additions of forward and backward."""
    return 6.0 * case.num_edges() * case.features * case.labels**2


def needed_bytes(case: str, contender: str) -> float:
    """Memory that a contender is known to need, as a multiple of the tables of energies."""
    return 4.0 * Case.parse(case).table_bytes() if contender in ("eager", "torch.compile") else 0.0


def make_call(case: Case, contender: str, device: torch.device) -> Callable[[], None]:
    """What is timed."""
    potential, _, labels = make_problem(case, device, requires_grad=True)
    parameters = (potential.source, potential.target, potential.weight, potential.bias)
    loss = CONTENDERS[contender]

    def step() -> None:
        torch.autograd.grad(loss(potential, labels), parameters)

    return step


def main(
    device: str = "cpu",
    cases: Sequence[str] = tuple(case.name for case in CASES),
    contenders: Sequence[str] = tuple(CONTENDERS),
    seconds: float = 2.0,
    precision: str = "highest",
    worker: bool = False,
) -> None:
    """Measures, prints a table and writes the record and plot `pairwise_loss`.

    With a precision the files are called pairwise_loss_PRECISION.

    Args:
        device: cpu or cuda.
        cases: sizes, as "HEIGHTxWIDTH K=labels D=features dtype".
        contenders: which of deepcrf_ext, eager, torch.compile, chunked.
        seconds: time to repeat each measurement for.
        precision: of products of float32, for `torch.set_float32_matmul_precision`.
        worker: measure the one case and contender in this process.
    """
    where = torch.device(device)
    torch.set_float32_matmul_precision(precision)
    if worker:
        call = make_call(Case.parse(cases[0]), contenders[0], where)
        print(json.dumps(measure(call, where, seconds)))
        return
    limits = ceilings(where, [torch.float32, torch.bfloat16])
    measurements = sweep(
        __file__,
        device,
        cases,
        contenders,
        seconds,
        needed_bytes,
        [f"--precision={precision}"],
        without_slow_bfloat16(limits),
    )
    name = "pairwise_loss" + ("" if precision == "highest" else f"_{precision}")
    title = f"pairwise loss, forward and backward; float32 products: {precision} precision"
    print_table(title, measurements, "eager")
    work = {case.name: operations(case) for case in map(Case.parse, cases)}
    print(write_results(name, where, measurements, ceilings=limits, operations=work))
    if edges := scaling_edges(cases):
        print(plot_scaling(name, where, measurements, edges))


if __name__ == "__main__":
    run_command(main)
