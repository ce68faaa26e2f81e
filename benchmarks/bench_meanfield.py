"""Mean field, 2 iterations, without or with its gradient: this package against plain PyTorch.

    python benchmarks/bench_meanfield.py [--gradient true] [--precision medium] [--device cuda] \\
        [--cases '["28x36 K=21 D=512 float32"]']

Work of one iteration, both directions of E edges over N nodes: 4·E·D·K operations for the
accumulators and 4·N·D·K² for the contraction with W; the tables of the eager version take
2·E·D·K² once and 4·E·K² bytes, read twice an iteration. With the gradient, forward and backward of
the unrolled iterations count as three times that: each product has two factors to differentiate.
What a version computes anew in its backward pass is not counted. Plain PyTorch is left out in
bfloat16 where its products are much slower than in float32, as without AVX-512.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import Case, make_problem, scaling_edges
from contenders import mean_field_chunked, mean_field_eager
from harness import measure, plot_scaling, print_table, run_command, sweep, write_results
from peak import ceilings, without_slow_bfloat16

import deepcrf_ext as dc

ITERATIONS = 2
CASES = (
    Case(14, 18, 21),
    Case(28, 36, 21),
    Case(56, 75, 21),
    Case(28, 36, 60),
    Case(14, 18, 150),
    *(
        Case(height, width, 21, dtype="bfloat16")
        for height, width in ((14, 18), (28, 36), (56, 75))
    ),
)
GRADIENT_CASES = (
    *CASES[:4],
    *(Case(height, width, 21, dtype="bfloat16") for height, width in ((14, 18), (28, 36))),
)
CONTENDERS: dict[str, Callable[..., Any]] = {
    "deepcrf_ext": lambda unary, potential, n: dc.mean_field(unary, [potential], n),
    "eager": mean_field_eager,
    "torch.compile": torch.compile(mean_field_eager),
    "chunked": mean_field_chunked,
}


def operations(case: Case, gradient: bool) -> float:
    """Multiplications and additions of the factored algorithm."""
    nodes, edges = case.height * case.width, case.num_edges()
    accumulate = edges * case.features * case.labels
    contract = nodes * case.features * case.labels**2
    return 4.0 * ITERATIONS * (accumulate + contract) * (3 if gradient else 1)


def needed_bytes(case: str, contender: str, gradient: bool = False) -> float:
    """Memory that a contender is known to need, from what it holds of every edge."""
    if contender not in ("eager", "torch.compile"):
        return 0.0
    tables, hidden = Case.parse(case).table_bytes(), Case.parse(case).hidden_bytes()
    return 4.0 * (tables + hidden) if gradient else 2.5 * tables


def make_call(
    case: Case, contender: str, device: torch.device, gradient: bool = False
) -> Callable[[], None]:
    """What is timed."""
    potential, unary, _ = make_problem(case, device, requires_grad=gradient)
    inputs = [unary.requires_grad_(gradient)]
    inputs += [potential.source, potential.target, potential.weight, potential.bias]
    cotangent = torch.randn_like(unary)
    call = CONTENDERS[contender]

    def step() -> None:
        with torch.set_grad_enabled(gradient):
            marginals = call(unary, potential, ITERATIONS)
            if gradient:
                torch.autograd.grad(marginals, inputs, cotangent)

    return step


def main(
    device: str = "cpu",
    cases: Sequence[str] | None = None,
    contenders: Sequence[str] = tuple(CONTENDERS),
    seconds: float = 2.0,
    gradient: bool = False,
    precision: str = "highest",
    worker: bool = False,
) -> None:
    """Measures, prints a table and writes the record and plot `meanfield`.

    With the gradient, the files are called meanfield_gradient, and with a precision NAME_PRECISION.

    Args:
        device: cpu or cuda.
        cases: sizes, as "HEIGHTxWIDTH K=labels D=features dtype" (default: `CASES`, or
            `GRADIENT_CASES`).
        contenders: which of deepcrf_ext, eager, torch.compile, chunked.
        seconds: time to repeat each measurement for.
        gradient: run forward and backward.
        precision: of products of float32, for `torch.set_float32_matmul_precision`.
        worker: measure the one case and contender in this process.
    """
    where = torch.device(device)
    torch.set_float32_matmul_precision(precision)
    if cases is None:
        cases = [case.name for case in (GRADIENT_CASES if gradient else CASES)]
    if worker:
        call = make_call(Case.parse(cases[0]), contenders[0], where, gradient)
        print(json.dumps(measure(call, where, seconds)))
        return
    name = "meanfield_gradient" if gradient else "meanfield"
    name += "" if precision == "highest" else f"_{precision}"
    limits = ceilings(where, [torch.float32, torch.bfloat16])
    measurements = sweep(
        __file__,
        device,
        cases,
        contenders,
        seconds,
        lambda case, contender: needed_bytes(case, contender, gradient),
        [f"--gradient={gradient}", f"--precision={precision}"],
        without_slow_bfloat16(limits),
    )
    work = ", forward and backward" if gradient else ""
    title = f"mean field, {ITERATIONS} iterations{work}; float32 products: {precision} precision"
    print_table(title, measurements, "eager")
    counts = {case.name: operations(case, gradient) for case in map(Case.parse, cases)}
    print(write_results(name, where, measurements, ceilings=limits, operations=counts))
    if edges := scaling_edges(cases):
        print(plot_scaling(name, where, measurements, edges))


if __name__ == "__main__":
    run_command(main)
