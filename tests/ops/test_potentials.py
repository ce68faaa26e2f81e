"""Pairwise potentials: their energies and the checks of their arguments."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from problems import FACTORED, TABLE, Problem, make_problem, random_graph
from strategies import problems

from deepcrf_ext import EdgeGraph, FactoredPotential, TablePotential


@given(problem=problems())
def test_energies_of_every_edge(problem: Problem) -> None:
    for potential in problem.potentials:
        energies = oracle.array(potential.energies())
        num_labels = potential.num_labels
        assert energies.shape == (potential.graph.num_edges, num_labels, num_labels)
        for energy, (_, _, wanted) in zip(energies, oracle.edges(potential), strict=True):
            np.testing.assert_allclose(energy, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [FACTORED, TABLE])
def test_energies_are_differentiable(kind: str) -> None:
    problem = make_problem([random_graph(4, 6, 1)], [kind], 2, 3)
    names = [name for name in problem.tensors if name.endswith("0")]

    def energies(*tensors: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(names, tensors, strict=True))
        return problem.with_tensors(inputs).potentials[0].energies()

    leaves = [problem.tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(energies, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [FACTORED, TABLE])
def test_attributes(kind: str, dtype: torch.dtype) -> None:
    problem = make_problem([random_graph(4, 6, 1)], [kind], 2, 3)
    potential = problem.to(torch.device("cpu"), dtype).potentials[0]
    assert potential.graph is problem.graphs[0]
    assert potential.num_labels == 2
    assert potential.dtype == dtype
    assert potential.device == torch.device("cpu")
    assert potential.energies().dtype == dtype
    with pytest.raises(FrozenInstanceError):
        potential.graph = random_graph(4, 6, 2)  # type: ignore[misc]


def test_any_strides() -> None:
    problem = make_problem([random_graph(4, 6, 1)], [FACTORED], 2, 3)
    strided = problem.map(lambda tensor: tensor.movedim(0, -1).contiguous().movedim(-1, 0))
    assert not any(strided.tensors[name].is_contiguous() for name in ("source0", "weight0"))
    torch.testing.assert_close(strided.potentials[0].energies(), problem.potentials[0].energies())


def test_table_follows_the_order_of_the_graph() -> None:
    graph = EdgeGraph.from_edges(torch.tensor([2, 0, 1]), torch.tensor([0, 1, 0]), 3)
    assert graph.edge_order is not None
    by_input_edge = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    potential = TablePotential(graph, energies=by_input_edge[graph.edge_order])
    assert potential.energies()[:, 0, 0].tolist() == [1.0, 2.0, 0.0]
    assert potential.graph.edge_index().tolist() == [[0, 1, 2], [1, 0, 0]]


def factored_arguments() -> dict[str, Any]:
    return {
        "graph": random_graph(4, 6, 1),
        "source": torch.zeros(4, 5),
        "target": torch.zeros(4, 5),
        "weight": torch.zeros(3, 3, 5),
        "bias": torch.zeros(3, 3),
    }


@pytest.mark.parametrize("name", ["source", "target", "weight", "bias"])
def test_every_tensor_is_checked(name: str) -> None:
    arguments = factored_arguments()
    fitting = arguments[name]
    bad: list[tuple[Any, type[Exception]]] = [
        (None, TypeError),
        (fitting.numpy(), TypeError),
        (fitting.long(), TypeError),
        (fitting.to("meta"), ValueError),
        (fitting[..., None], ValueError),
        (fitting[:-1], ValueError),
        (fitting[..., :0], ValueError),
    ]
    for value, error in bad:
        with pytest.raises(error, match=rf"^{name}: got .*must be"):
            FactoredPotential(**{**arguments, name: value})


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"graph": None}, TypeError, "graph"),
        ({"source": torch.zeros(4, 6)}, ValueError, "target"),
        ({"source": torch.zeros(4, 5).double()}, TypeError, "target"),
        ({"target": torch.zeros(4, 5).double()}, TypeError, "target"),
        ({"weight": torch.zeros(3, 2, 5)}, ValueError, "weight"),
        ({"weight": torch.zeros(3, 3, 5).bfloat16()}, TypeError, "weight"),
        ({"weight": torch.zeros(0, 0, 5), "bias": torch.zeros(0, 0)}, ValueError, "weight"),
        ({"bias": torch.zeros(2, 2)}, ValueError, "bias"),
        ({"bias": torch.zeros(3, 3).double()}, TypeError, "bias"),
    ],
)
def test_tensors_must_fit_each_other(
    changed: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=rf"^{named}: got .*must be"):
        FactoredPotential(**{**factored_arguments(), **changed})


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"graph": "graph"}, TypeError, "graph"),
        ({"energies": None}, TypeError, "energies"),
        ({"energies": torch.zeros(6, 3, 3).long()}, TypeError, "energies"),
        ({"energies": torch.zeros(5, 3, 3)}, ValueError, "energies"),
        ({"energies": torch.zeros(6, 3, 2)}, ValueError, "energies"),
        ({"energies": torch.zeros(6, 9)}, ValueError, "energies"),
        ({"energies": torch.zeros(6, 0, 0)}, ValueError, "energies"),
        ({"energies": torch.zeros(6, 3, 3, device="meta")}, ValueError, "energies"),
    ],
)
def test_table_is_checked(changed: dict[str, Any], error: type[Exception], named: str) -> None:
    arguments = {"graph": random_graph(4, 6, 1), "energies": torch.zeros(6, 3, 3), **changed}
    with pytest.raises(error, match=rf"^{named}: got .*must be"):
        TablePotential(**arguments)


@pytest.mark.parametrize("weight", [0.5, -2, np.float32(0.5), torch.tensor(0.5)])
def test_scaled_energies(weight: Any) -> None:
    potential = make_problem([random_graph(4, 6, 1)], [FACTORED], 3, 5).potentials[0]
    scaled = potential.scaled(weight).energies()
    torch.testing.assert_close(scaled, float(weight) * potential.energies())


@pytest.mark.parametrize(
    ("weight", "error"),
    [("1", TypeError), (None, TypeError), (True, TypeError), (torch.ones(5), ValueError)],
)
def test_what_energies_are_scaled_by_is_checked(weight: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^weight: got .*must be .*\[\]"):
        FactoredPotential(**factored_arguments()).scaled(weight)
