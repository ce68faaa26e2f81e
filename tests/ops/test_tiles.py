"""Operators by matrix tiles, on processors that have them and over an emulation on all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from accuracy import TOLERANCE, assert_accurate
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    FACTORED,
    OPERATORS,
    Problem,
    grid_problem,
    make_problem,
    random_graph,
    value_and_gradients,
)
from registered import opcheck
from strategies import problems
from threads import torch_threads
from tiles_on_host.host_module import tiles_on_host

import deepcrf_ext as dc
from deepcrf_ext import reference
from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._flat_tensors import graph_tensors, potential_tensors
from deepcrf_ext.ops.mean_field import mean_field_factored
from deepcrf_ext.ops.pairwise_messages import messages, messages_backward
from deepcrf_ext.ops.pairwise_nll import edge_losses, edge_losses_forward_backward

CPU = torch.device("cpu")

# Tiles are 16 edges, labels or features, and 32 of what a product sums over; blocks are 64 edges
# and 64 features. Energies of 1,536 edges are alive at a time, or of 128 a thread if that is more.
PROBLEMS = {
    "whole-tiles": lambda: make_problem([random_graph(16, 64, 1)], [FACTORED], 8, 64, ignored=0),
    "one-more": lambda: make_problem([random_graph(17, 65, 2)], [FACTORED], 9, 65),
    "one-less": lambda: make_problem([random_graph(15, 63, 3)], [FACTORED], 7, 63),
    "few": lambda: make_problem([random_graph(2, 3, 4)], [FACTORED], 2, 3, ignored=0),
    "one-label": lambda: make_problem([random_graph(9, 20, 5)], [FACTORED], 1, 17),
    "no-edges": lambda: make_problem([random_graph(4, 0, 6)], [FACTORED], 3, 8),
    "labels": lambda: make_problem([random_graph(18, 33, 7)], [FACTORED], 33, 20),
    "features": lambda: make_problem([random_graph(20, 30, 8)], [FACTORED], 3, 257),
    "several-parts": lambda: make_problem(
        [random_graph(80, 1700, 9)], [FACTORED], 9, 16, ignored=0, scale=0.5
    ),
    "many-neighbours": lambda: make_problem([random_graph(3, 1600, 10)], [FACTORED], 4, 48),
    "many-nodes": lambda: make_problem([random_graph(1100, 2000, 11)], [FACTORED], 3, 5),
    "grid": lambda: grid_problem(9, 7, FACTORED, 21, 48),
}


@dataclass(frozen=True)
class Operands:
    """Of what dtype potentials are, and how exact torch wants products of float32.

    tolerance: beside what plain PyTorch errs, relative to the largest entry.
    """

    dtype: torch.dtype
    precision: str = "highest"

    @property
    def plain(self) -> tuple[torch.dtype, float]:
        """A dtype of which plain PyTorch errs as much, times a factor."""
        bfloat16 = {"medium": 1.0, "high": 2.0**-6}  # two bfloat16 hold some 7 bits more
        if self.precision in bfloat16:
            return torch.bfloat16, bfloat16[self.precision]
        return self.dtype, 1.0

    @property
    def tolerance(self) -> float:
        return {"highest": TOLERANCE[self.dtype], "high": 1e-4, "medium": 1e-2}[self.precision]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}-{self.precision}"


BFLOAT16 = Operands(torch.bfloat16)
HIGH, MEDIUM = (Operands(torch.float32, precision) for precision in ("high", "medium"))
OPERANDS = [BFLOAT16, Operands(torch.float16), MEDIUM, HIGH]
every_operands = pytest.mark.parametrize("operands", OPERANDS, ids=str)
every_operator = pytest.mark.parametrize(
    "operator", ["pairwise_nll", "pairwise_nll_mean", "pairwise_messages", "mean_field"]
)


@pytest.fixture(params=["emulated", "real"])
def tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each way to have tiles, active."""
    if request.param == "real" and _backend.native().cpu_isa() != "amx":
        pytest.skip("this processor, or DEEPCRF_CPU_ISA, has no matrix tiles")
    with tiles_on_host() if request.param == "emulated" else nullcontext():
        yield


@contextmanager
def precision_of(operands: Operands) -> Iterator[None]:
    former = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(operands.precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(former)


def results(
    operator: str, problem: Problem, operands: Operands = BFLOAT16, threads: int = 1
) -> dict[str, torch.Tensor]:
    with torch_threads(threads), precision_of(operands):
        return value_and_gradients(operator, dc, problem.to(CPU, operands.dtype))


def check(operator: str, problem: Problem, operands: Operands) -> None:
    exact = exact_results(operator, problem, operands.dtype)
    dtype, factor = operands.plain
    plain = value_and_gradients(operator, reference, problem.to(CPU, dtype))
    erring = {name: exact[name] + factor * (value - exact[name]) for name, value in plain.items()}
    actual = results(operator, problem, operands)
    assert all(value.dtype == operands.dtype for value in actual.values())
    actual = {name: value.double() for name, value in actual.items()}
    assert_accurate(actual, erring, exact, operands.tolerance)


def exact_results(operator: str, problem: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """In float64, of inputs rounded to the dtype."""
    rounded = problem.to(CPU, dtype).to(CPU, torch.float64)
    return value_and_gradients(operator, reference, rounded)


def largest_error(operator: str, problem: Problem, operands: Operands) -> float:
    """Of value and gradients, relative to the largest entry of each."""
    exact = exact_results(operator, problem, operands.dtype)
    return max(
        float((value - exact[name]).abs().max() / exact[name].abs().max())
        for name, value in results(operator, problem, operands).items()
    )


@pytest.mark.usefixtures("tiles")
@every_operands
@every_operator
@pytest.mark.parametrize("name", PROBLEMS)
def test_accuracy(operator: str, name: str, operands: Operands) -> None:
    check(operator, PROBLEMS[name](), operands)


@every_operator
@given(
    problem=problems(label_counts=[1, 2, 7, 8, 17, 33], dims=st.integers(1, 70), max_edges=40),
    operands=st.sampled_from(OPERANDS),
)
def test_ragged_problems(operator: str, problem: Problem, operands: Operands) -> None:
    with tiles_on_host():
        check(operator, problem, operands)


@pytest.mark.usefixtures("tiles")
@every_operands
@pytest.mark.parametrize("operator", ["pairwise_nll_mean", "pairwise_messages"])
@pytest.mark.parametrize("name", ["several-parts", "grid", "many-nodes", "features"])
def test_bits_do_not_depend_on_threads(operator: str, name: str, operands: Operands) -> None:
    problem = PROBLEMS[name]()
    once = results(operator, problem, operands)
    for threads in (1, 2, 3, 13):
        again = results(operator, problem, operands, threads)
        assert all(torch.equal(value, once[key]) for key, value in again.items())


@pytest.mark.usefixtures("tiles")
@every_operands
def test_mean_field_without_gradients(operands: Operands) -> None:
    """The whole loop in one call; with gradients, messages are formed an iteration at a time."""
    problem = PROBLEMS["grid"]().to(CPU, operands.dtype)
    exact = problem.to(CPU, torch.float64)
    dtype, factor = operands.plain
    narrow = problem.to(CPU, dtype)
    with torch.no_grad(), precision_of(operands):
        marginals, plain, truth = (
            functions.mean_field(p.tensors["unary"], p.potentials, 3).double()
            for functions, p in ((dc, problem), (reference, narrow), (reference, exact))
        )
    error, allowed = (marginals - truth).norm(), factor * (plain - truth).norm()
    assert error <= allowed + operands.tolerance * truth.norm()


@pytest.mark.usefixtures("tiles")
@every_operands
def test_one_edge_sends_messages_both_ways(operands: Operands) -> None:
    graph = dc.EdgeGraph.from_edges(torch.tensor([2]), torch.tensor([0]), 3)
    problem = make_problem([graph], [FACTORED], 9, 40)
    received = results("pairwise_messages", problem, operands)["value"]
    ((first, second),) = problem.tensors["marginals"][[2, 0]][None]
    (energies,) = problem.potentials[0].energies()
    wanted = torch.stack([first @ energies, torch.zeros(9), energies @ second])
    torch.testing.assert_close(received.double(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("tiles")
@every_operator
def test_precision_of_float32_is_read_at_every_call(operator: str) -> None:
    """True float32 by default, whatever a call before it was told."""
    problem = PROBLEMS["grid"]()
    exact = Operands(torch.float32)
    highest, medium, high, again = (
        largest_error(operator, problem, operands) for operands in (exact, MEDIUM, HIGH, exact)
    )
    assert highest == again < 1e-5
    assert 4 * highest < high < 1e-4
    assert 50 * high < medium < 5e-2


@pytest.mark.usefixtures("tiles")
def test_few_labels_stay_float32_under_high() -> None:
    """Three products by tiles would take as long."""
    problem = make_problem([random_graph(20, 60, 1)], [FACTORED], 7, 40)
    for operator in OPERATORS:
        exact, high = (results(operator, problem, o) for o in (Operands(torch.float32), HIGH))
        assert all(torch.equal(value, exact[name]) for name, value in high.items())


@pytest.mark.usefixtures("tiles")
@every_operands
def test_registered_operators_pass_opcheck(operands: Operands) -> None:
    problem = grid_problem(3, 4, FACTORED, 8, 5).to(CPU, operands.dtype)
    potential = problem.potentials[0]
    graph, tensors = graph_tensors(potential.graph), potential_tensors(potential)
    unary, marginals = (problem.tensors[name].float() for name in ("unary", "marginals"))
    labelled = (graph, tensors, problem.labels, problem.ignore_index)
    with precision_of(operands):
        opcheck(messages, (graph, tensors, marginals, False))
        opcheck(messages_backward, (graph, tensors, marginals[None], unary[None]))
        opcheck(mean_field_factored, (graph, tensors, unary, 2))
        opcheck(edge_losses, (*labelled, "none"))
        opcheck(edge_losses_forward_backward, (*labelled, "mean"))


def test_the_emulation_is_what_runs() -> None:
    with tiles_on_host() as module:
        assert module.cpu_isa() == "amx"
