"""mean_field against loops over edges and label pairs, and its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import FACTORED, TABLE, Problem, make_problem, random_graph
from strategies import problems
from targets import Target
from threads import torch_threads
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import deepcrf_ext as dc
from deepcrf_ext import EdgeGraph, TablePotential


@given(problem=problems(), iterations=st.integers(0, 4))
def test_equals_loops(target: Target, problem: Problem, iterations: int) -> None:
    problem = problem.to(target.device, torch.float64)
    unary, potentials = problem.tensors["unary"], problem.potentials
    marginals = target.functions.mean_field(unary, potentials, iterations=iterations)
    edge_lists = [oracle.edges(potential) for potential in potentials]
    wanted = oracle.mean_field(oracle.array(unary), edge_lists, iterations)
    np.testing.assert_allclose(oracle.array(marginals), wanted, rtol=1e-9, atol=1e-10)


def mixed_problem() -> Problem:
    """Three potentials of both kinds on seven nodes."""
    graphs = [random_graph(7, 12, seed) for seed in range(3)]
    return make_problem(graphs, [FACTORED, TABLE, FACTORED], 4, 6)


@pytest.mark.parametrize("kind", [FACTORED, TABLE])
def test_gradients_are_the_same_on_any_number_of_threads(kind: str) -> None:
    problem = make_problem([random_graph(700, 3000, 4)], [kind], 21, 40)

    def gradients(threads: int) -> list[torch.Tensor]:
        with torch_threads(threads):
            leaves = problem.map(lambda tensor: tensor.detach().requires_grad_())
            marginals = dc.mean_field(leaves.tensors["unary"], leaves.potentials, 3)
            marginals[:, 0].sum().backward()
            found = [tensor.grad for tensor in leaves.tensors.values() if tensor.grad is not None]
            return [marginals, *found]

    alone = gradients(1)
    assert len(alone) == {FACTORED: 6, TABLE: 3}[kind]
    for threads in (2, 3):
        assert all(map(torch.equal, alone, gradients(threads)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tables_keep_one_gradient_however_many_iterations(dtype: torch.dtype) -> None:
    """That of the sum, and none of each iteration; and no copy of the table, in whatever dtype."""
    graph = random_graph(40, 200, 4)
    table = torch.randn(200, 9, 9).to(dtype).requires_grad_()
    formed = []

    class Formed(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            formed.extend(leaf for leaf in tree_leaves(result) if leaf.shape == table.shape)
            return result

    unary = torch.randn(40, 9).to(dtype)
    with Formed():
        marginals = dc.mean_field(unary, [TablePotential(graph, table)], 5)
        torch.autograd.grad(marginals[:, 0].sum(), table)
    assert len({gradient.data_ptr() for gradient in formed}) == 1


def test_two_iterations_are_the_default(target: Target) -> None:
    problem = mixed_problem().to(target.device, torch.float64)
    unary, potentials = problem.tensors["unary"], problem.potentials
    wanted = target.functions.mean_field(unary, potentials, iterations=2)
    assert torch.equal(target.functions.mean_field(unary, tuple(potentials)), wanted)


def test_no_iterations_and_no_potentials_give_the_softmax(target: Target) -> None:
    problem = mixed_problem().to(target.device, torch.float64)
    unary = problem.tensors["unary"]
    wanted = (-unary).softmax(1)
    without = target.functions.mean_field(unary, problem.potentials, iterations=0)
    torch.testing.assert_close(without, wanted)
    torch.testing.assert_close(target.functions.mean_field(unary, []), wanted)


def test_no_iterations_give_no_gradient_to_the_potentials(target: Target) -> None:
    problem = mixed_problem().to(target.device, torch.float64)
    problem = problem.map(lambda tensor: tensor.requires_grad_())
    unary, weight = problem.tensors["unary"], problem.tensors["weight0"]
    marginals = target.functions.mean_field(unary, problem.potentials, iterations=0)
    to_unary, to_weight = torch.autograd.grad(
        marginals[:, 0].sum(), [unary, weight], allow_unused=True, materialize_grads=True
    )
    assert (to_unary != 0).any()
    assert (to_weight == 0).all()


def test_is_exact_where_nodes_are_independent(target: Target) -> None:
    ends = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 3, 3, 1]])
    problem = make_problem([EdgeGraph.from_edges(ends[0], ends[1], 4)], [TABLE], 3, 1)
    problem = problem.to(target.device, torch.float64)
    table = problem.tensors["table0"]
    problem = problem.with_tensors({"table0": table[:, :, :1] + table[:, :1, :]})
    probabilities = oracle.joint_probabilities(
        oracle.array(problem.tensors["unary"]), oracle.edges(problem.potentials[0])
    )
    exact = [probabilities.sum(axis=tuple(set(range(4)) - {node})) for node in range(4)]
    marginals = target.functions.mean_field(
        problem.tensors["unary"], problem.potentials, iterations=1
    )
    np.testing.assert_allclose(oracle.array(marginals), np.array(exact), rtol=1e-10)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_rows_are_probabilities(target: Target, dtype: torch.dtype, scale: float) -> None:
    problem = make_problem([random_graph(9, 40, 5)], [FACTORED], 6, 20, scale=scale)
    problem = problem.to(target.device, dtype)
    marginals = target.functions.mean_field(problem.tensors["unary"], problem.potentials, 5)
    assert marginals.dtype == dtype
    assert (marginals >= 0).all()
    slack = 1e-5 if dtype.itemsize > 2 else 2e-2
    torch.testing.assert_close(
        marginals.double().sum(1),
        torch.ones(9).to(marginals.device, torch.float64),
        atol=slack,
        rtol=0,
    )


def other_potential(dtype: torch.dtype = torch.float32, nodes: int = 6, labels: int = 3) -> Any:
    graph = EdgeGraph.from_edges(torch.tensor([0]), torch.tensor([1]), nodes)
    return TablePotential(graph, torch.zeros(1, labels, labels, dtype=dtype))


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"unary": None}, TypeError, "unary"),
        ({"unary": torch.zeros(6)}, ValueError, "unary"),
        ({"unary": torch.zeros(6, 0)}, ValueError, "unary"),
        ({"unary": torch.zeros(6, 3, dtype=torch.int64)}, TypeError, "unary"),
        ({"unary": torch.zeros(5, 3)}, ValueError, r"potentials\[0\]"),
        ({"unary": torch.zeros(6, 4)}, ValueError, r"potentials\[0\]"),
        ({"unary": torch.zeros(6, 3, device="meta")}, ValueError, "unary"),
        ({"potentials": other_potential()}, TypeError, "potentials"),
        ({"potentials": None}, TypeError, "potentials"),
        ({"potentials": [None]}, TypeError, r"potentials\[0\]"),
        ({"potentials": [other_potential(torch.float64)]}, TypeError, r"potentials\[0\]"),
        ({"potentials": [other_potential(nodes=7)]}, ValueError, r"potentials\[0\]"),
        ({"potentials": [other_potential(labels=2)]}, ValueError, r"potentials\[0\]"),
        ({"iterations": -1}, ValueError, "iterations"),
        ({"iterations": 1.0}, TypeError, "iterations"),
        ({"iterations": True}, TypeError, "iterations"),
    ],
)
def test_bad_arguments(
    target: Target, arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    problem = make_problem([random_graph(6, 14, 8)], [FACTORED], 3, 5)
    problem = problem.to(target.device, torch.float32)
    given_arguments = {
        "unary": problem.tensors["unary"],
        "potentials": problem.potentials,
        "iterations": 2,
        **arguments,
    }
    with pytest.raises(error, match=rf"^{named}: got .*must be"):
        target.functions.mean_field(**given_arguments)


def test_the_potential_that_does_not_fit_is_named(target: Target) -> None:
    problem = make_problem([random_graph(6, 14, 8)] * 2, [FACTORED] * 2, 3, 5)
    problem = problem.to(target.device, torch.float32)
    potentials = [*problem.potentials, other_potential(nodes=7)]
    match = r"^potentials\[2\]: got 7 nodes and 3 labels, must be 6 and 3 as unary"
    with pytest.raises(ValueError, match=match):
        target.functions.mean_field(problem.tensors["unary"], potentials)
