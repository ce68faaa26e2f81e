"""Operators by matrix tiles, on processors that have them and over an emulation on all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from accuracy import assert_accurate
from problems import (
    FACTORED,
    Problem,
    grid_problem,
    make_problem,
    random_graph,
    value_and_gradients,
)
from threads import torch_threads
from tiles_on_host.host_module import tiles_on_host

import deepcrf_ext as dc
from deepcrf_ext import reference
from deepcrf_ext.ops import _backend

CPU = torch.device("cpu")

# Tiles are 16 edges, labels or features, and 32 of what a product sums over; blocks are 64 edges
# and 64 features.
PROBLEMS = {
    "whole-tiles": lambda: make_problem([random_graph(16, 64, 1)], [FACTORED], 8, 64, ignored=0),
    "one-more": lambda: make_problem([random_graph(17, 65, 2)], [FACTORED], 9, 65),
    "one-less": lambda: make_problem([random_graph(15, 63, 3)], [FACTORED], 7, 63),
    "few": lambda: make_problem([random_graph(2, 3, 4)], [FACTORED], 2, 3, ignored=0),
    "one-label": lambda: make_problem([random_graph(9, 20, 5)], [FACTORED], 1, 17),
    "no-edges": lambda: make_problem([random_graph(4, 0, 6)], [FACTORED], 3, 8),
    "labels": lambda: make_problem([random_graph(18, 33, 7)], [FACTORED], 33, 20),
    "features": lambda: make_problem([random_graph(20, 30, 8)], [FACTORED], 3, 257),
    "several-parts": lambda: make_problem([random_graph(80, 1700, 9)], [FACTORED], 3, 16),
    "many-neighbours": lambda: make_problem([random_graph(3, 1600, 10)], [FACTORED], 4, 48),
    "many-nodes": lambda: make_problem([random_graph(1100, 2000, 11)], [FACTORED], 3, 5),
    "grid": lambda: grid_problem(9, 7, FACTORED, 21, 48),
}


@pytest.fixture(params=["emulated", "real"])
def tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each way to have tiles, active."""
    if request.param == "real" and _backend.native().cpu_isa() != "amx":
        pytest.skip("this processor, or DEEPCRF_CPU_ISA, has no matrix tiles")
    with tiles_on_host() if request.param == "emulated" else nullcontext():
        yield


def results(operator: str, problem: Problem, threads: int = 1) -> dict[str, torch.Tensor]:
    with torch_threads(threads):
        return value_and_gradients(operator, dc, problem)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(
    "operator", ["pairwise_nll", "pairwise_nll_mean", "pairwise_messages", "mean_field"]
)
@pytest.mark.parametrize("name", PROBLEMS)
def test_accuracy(operator: str, name: str) -> None:
    problem = PROBLEMS[name]().to(CPU, torch.bfloat16)
    assert_accurate(
        results(operator, problem),
        value_and_gradients(operator, reference, problem),
        value_and_gradients(operator, reference, problem.to(CPU, torch.float64)),
    )


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("operator", ["pairwise_nll_mean", "pairwise_messages"])
@pytest.mark.parametrize("name", ["several-parts", "grid", "many-nodes"])
def test_bits_do_not_depend_on_threads(operator: str, name: str) -> None:
    problem = PROBLEMS[name]().to(CPU, torch.bfloat16)
    once = results(operator, problem)
    for threads in (1, 2, 3):
        again = results(operator, problem, threads)
        assert all(torch.equal(value, once[key]) for key, value in again.items())


@pytest.mark.usefixtures("tiles")
def test_mean_field_without_gradients() -> None:
    """The whole loop in one call; with gradients, messages are formed an iteration at a time."""
    problem = PROBLEMS["grid"]().to(CPU, torch.bfloat16)
    exact = problem.to(CPU, torch.float64)
    with torch.no_grad():
        marginals, plain, truth = (
            functions.mean_field(p.tensors["unary"], p.potentials, 3).double()
            for functions, p in ((dc, problem), (reference, problem), (reference, exact))
        )
    assert (marginals - truth).norm() <= (plain - truth).norm() + 1e-2 * truth.norm()


def test_the_emulation_is_what_runs() -> None:
    with tiles_on_host() as module:
        assert module.cpu_isa() == "amx"
