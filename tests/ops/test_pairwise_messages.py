"""pairwise_messages against loops over edges and label pairs, and its arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from problems import FACTORED, TABLE, Problem, make_problem, random_graph
from strategies import problems
from targets import Target
from threads import torch_threads

import deepcrf_ext as dc
from deepcrf_ext import EdgeGraph, TablePotential
from deepcrf_ext.ops._flat_tensors import graph_tensors
from deepcrf_ext.ops.pairwise_messages import messages_backward


@given(problem=problems())
def test_equals_loops(target: Target, problem: Problem) -> None:
    problem = problem.to(target.device, torch.float64)
    potential, marginals = problem.potentials[0], problem.tensors["marginals"]
    value = target.functions.pairwise_messages(potential, marginals)
    wanted = oracle.pairwise_messages(oracle.edges(potential), oracle.array(marginals))
    np.testing.assert_allclose(oracle.array(value), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("labels", [5, 21, 40])
def test_the_number_of_threads_changes_no_bit(labels: int) -> None:
    generator = torch.Generator().manual_seed(labels)
    ends = torch.randint(150, (2, 900), generator=generator)
    graph = EdgeGraph.from_edges(*ends, 150)
    shapes = [(150, 37), (150, 37), (labels, labels, 37), (labels, labels)]
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    marginals = torch.randn(150, labels, generator=generator).softmax(1).requires_grad_()
    cotangent = torch.randn(150, labels, generator=generator)

    def values(threads: int) -> list[torch.Tensor]:
        with torch_threads(threads):
            potential = dc.FactoredPotential(graph, *tensors)
            messages = dc.pairwise_messages(potential, marginals)
            gradients = torch.autograd.grad(messages, [marginals, *tensors], cotangent)
            with torch.no_grad():
                return [messages, *gradients, dc.mean_field(cotangent, [potential])]

    alone = values(1)
    for threads in (2, 3):
        assert all(map(torch.equal, alone, values(threads)))


def test_both_ends_of_an_edge_receive(target: Target) -> None:
    graph = EdgeGraph.from_edges(torch.tensor([0]), torch.tensor([1]), 3).to(target.device)
    energies = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], device=target.device)
    marginals = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], device=target.device)
    messages = target.functions.pairwise_messages(TablePotential(graph, energies), marginals)
    assert messages.tolist() == [[2.0, 4.0], [1.0, 2.0], [0.0, 0.0]]


def test_self_loop_and_duplicates_count_each_time(target: Target) -> None:
    graph = EdgeGraph.from_edges(torch.tensor([0, 0]), torch.tensor([0, 0]), 1).to(target.device)
    energies = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], device=target.device).expand(2, 2, 2)
    marginals = torch.tensor([[0.25, 0.75]], device=target.device)
    messages = target.functions.pairwise_messages(TablePotential(graph, energies), marginals)
    out_message = [0.25 * 1 + 0.75 * 2, 0.25 * 3 + 0.75 * 4]
    in_message = [0.25 * 1 + 0.75 * 3, 0.25 * 2 + 0.75 * 4]
    wanted = [2 * (out + into) for out, into in zip(out_message, in_message, strict=True)]
    assert messages.tolist() == [wanted]


def test_an_infinite_energy_stays_with_its_labels(target: Target) -> None:
    graph = EdgeGraph.from_edges(torch.tensor([0]), torch.tensor([1]), 2).to(target.device)
    energies = torch.zeros(1, 5, 5, device=target.device)
    energies[0, 1, 4] = math.inf
    marginals = torch.full((2, 5), 0.2, device=target.device)
    messages = target.functions.pairwise_messages(TablePotential(graph, energies), marginals)
    assert messages.tolist() == [[0, math.inf, 0, 0, 0], [0, 0, 0, 0, math.inf]]


@pytest.mark.parametrize("kind", [FACTORED, TABLE])
def test_is_the_gradient_of_the_expected_energy(target: Target, kind: str) -> None:
    problem = make_problem([random_graph(7, 20, 9)], [kind], 4, 6)
    problem = problem.to(target.device, torch.float64)
    potential = problem.potentials[0]
    marginals = problem.tensors["marginals"].requires_grad_()
    first, second = potential.graph.edge_index()
    expected_energy = torch.einsum(
        "ek,ekj,ej->", marginals[first], potential.energies(), marginals[second]
    )
    (wanted,) = torch.autograd.grad(expected_energy, marginals)
    torch.testing.assert_close(target.functions.pairwise_messages(potential, marginals), wanted)


def test_marginals_need_not_be_probabilities(target: Target) -> None:
    problem = make_problem([random_graph(7, 20, 9)], [FACTORED], 4, 6)
    problem = problem.to(target.device, torch.float64)
    potential, marginals = problem.potentials[0], problem.tensors["marginals"]
    messages = target.functions.pairwise_messages(potential, marginals)
    scaled = target.functions.pairwise_messages(potential, -3 * marginals)
    torch.testing.assert_close(scaled, -3 * messages)
    assert (target.functions.pairwise_messages(potential, 0 * marginals) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"potential": None}, TypeError, "potential"),
        ({"marginals": [[0.5, 0.5, 0.5]] * 6}, TypeError, "marginals"),
        ({"marginals": torch.zeros(6)}, ValueError, "marginals"),
        ({"marginals": torch.zeros(5, 3)}, ValueError, "marginals"),
        ({"marginals": torch.zeros(6, 4)}, ValueError, "marginals"),
        ({"marginals": torch.zeros(6, 3, dtype=torch.float64)}, TypeError, "marginals"),
        ({"marginals": torch.zeros(6, 3, dtype=torch.int64)}, TypeError, "marginals"),
        ({"marginals": torch.zeros(6, 3, device="meta")}, ValueError, "marginals"),
    ],
)
def test_bad_arguments(
    target: Target, arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    problem = make_problem([random_graph(6, 14, 8)], [FACTORED], 3, 5)
    problem = problem.to(target.device, torch.float32)
    potential = arguments.get("potential", problem.potentials[0])
    marginals = arguments.get("marginals", problem.tensors["marginals"])
    with pytest.raises(error, match=rf"^{named}: got .*must be"):
        target.functions.pairwise_messages(potential, marginals)


HALVES = [torch.bfloat16, torch.float16]


def all_halves(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_of_a_table_is_read_as_it_is(
    operator_target: Target, dtype: torch.dtype
) -> None:
    halves = all_halves(dtype)
    table = torch.where(halves.isfinite(), halves, 0).view(1, 256, 256).to(operator_target.device)
    graph = EdgeGraph.from_edges(torch.tensor([0]), torch.tensor([1]), 2)
    potential = TablePotential(graph.to(operator_target.device), table)
    for label in range(0, 256, 5):
        marginals = torch.zeros(2, 256, dtype=dtype, device=operator_target.device)
        marginals[1, label] = 1
        received = operator_target.functions.pairwise_messages(potential, marginals)
        assert torch.equal(received[0], table[0, :, label])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_a_table_are_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    """All halves, what is half-way between two of them, and their neighbours."""
    halves = all_halves(dtype).float()
    halves = halves[halves.isfinite()].sort().values
    between = (halves[1:] + halves[:-1]) / 2
    infinity = torch.tensor(float("inf"))
    values = torch.cat([halves, between, between.nextafter(infinity), between.nextafter(-infinity)])
    values = torch.cat([values, torch.tensor([float("inf"), -float("inf"), float("nan"), 3e38])])
    values = torch.nn.functional.pad(values, (0, -len(values) % 21)).view(-1, 21)
    ends = 2 * torch.arange(len(values))
    graph = EdgeGraph.from_edges(ends, ends + 1, 2 * len(values))
    marginals, gradient = torch.zeros(2, 1, 2 * len(values), 21)
    gradient[0, ends] = values
    marginals[0, ends + 1, 4] = 1
    table = torch.zeros(len(values), 21, 21, dtype=dtype)
    (rounded,) = messages_backward(graph_tensors(graph), [table], marginals, gradient)
    torch.testing.assert_close(
        rounded[:, :, 4], values.to(dtype), rtol=0, atol=0, equal_nan=True, check_stride=False
    )
