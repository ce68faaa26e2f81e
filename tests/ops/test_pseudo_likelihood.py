"""pseudo_likelihood_nll against enumeration of the other nodes' labels, and its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from problems import FACTORED, TABLE, Problem, make_problem, random_graph
from strategies import problems, reductions
from targets import Target


@given(problem=problems(), reduction=reductions)
def test_equals_enumeration(target: Target, problem: Problem, reduction: str) -> None:
    problem = problem.to(target.device, torch.float64)
    unary, labels = problem.tensors["unary"], problem.labels.tolist()
    value = target.functions.pseudo_likelihood_nll(
        unary, problem.potentials, problem.labels, problem.ignore_index, reduction
    )
    edge_lists = [oracle.edges(potential) for potential in problem.potentials]
    losses = oracle.pseudo_likelihood_nll(
        oracle.array(unary), edge_lists, labels, problem.ignore_index
    )
    valid = [label != problem.ignore_index for label in labels]
    wanted = oracle.reduced(losses, valid, reduction)
    np.testing.assert_allclose(oracle.array(value), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_conditionals_of_the_exact_joint_distribution(target: Target, seed: int) -> None:
    graphs = [random_graph(4, 9, seed), random_graph(4, 5, seed + 10)]
    problem = make_problem(graphs, [FACTORED, TABLE], 3, 4, ignored=0.0, seed=seed)
    problem = problem.to(target.device, torch.float64)
    unary, potentials = problem.tensors["unary"], problem.potentials
    all_edges = [edge for potential in potentials for edge in oracle.edges(potential)]
    joint = oracle.joint_probabilities(oracle.array(unary), all_edges)
    labelling = problem.labels.tolist()
    wanted = []
    for node in range(4):
        others: list[Any] = list(labelling)
        others[node] = slice(None)
        conditional = joint[tuple(others)] / joint[tuple(others)].sum()
        wanted.append(-np.log(conditional[labelling[node]]))
    value = target.functions.pseudo_likelihood_nll(
        unary, potentials, problem.labels, reduction="none"
    )
    np.testing.assert_allclose(oracle.array(value), wanted, rtol=1e-10)


def test_without_potentials_is_the_cross_entropy(target: Target) -> None:
    problem = make_problem([random_graph(8, 3, 1)], [FACTORED], 5, 2, ignored=0.4)
    problem = problem.to(target.device, torch.float64)
    unary, labels = problem.tensors["unary"], problem.labels
    wanted = torch.nn.functional.cross_entropy(-unary, labels, ignore_index=255)
    torch.testing.assert_close(target.functions.pseudo_likelihood_nll(unary, [], labels), wanted)


@pytest.mark.parametrize("kind", [FACTORED, TABLE])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_nodes_ignored_gives_zero_with_zero_gradients(
    target: Target, kind: str, reduction: str
) -> None:
    problem = make_problem([random_graph(6, 14, 8)], [kind], 3, 5, ignored=1.0)
    problem = problem.to(target.device, torch.float32)
    problem = problem.map(lambda tensor: tensor.requires_grad_())
    value = target.functions.pseudo_likelihood_nll(
        problem.tensors["unary"], problem.potentials, problem.labels, reduction=reduction
    )
    assert (value == 0).all()
    value.sum().backward()
    for name, tensor in problem.tensors.items():
        assert tensor.grad is None or (tensor.grad == 0).all(), name


def test_an_ignored_node_leaves_no_trace(target: Target) -> None:
    problem = make_problem([random_graph(6, 25, 8)], [FACTORED], 3, 5, ignored=0.0)
    problem = problem.to(target.device, torch.float64)
    labels = problem.labels.clone()
    labels[2] = 255
    moved = dict(problem.tensors)
    for name in ("unary", "source0", "target0"):
        moved[name] = moved[name].clone()
        moved[name][2] += 100
    values = [
        target.functions.pseudo_likelihood_nll(tensors["unary"], variant.potentials, labels)
        for tensors in (problem.tensors, moved)
        for variant in [problem.with_tensors(tensors)]
    ]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"unary": torch.zeros(6)}, ValueError, "unary"),
        ({"unary": torch.zeros(5, 3)}, ValueError, r"potentials\[0\]"),
        ({"potentials": None}, TypeError, "potentials"),
        ({"potentials": [None]}, TypeError, r"potentials\[0\]"),
        ({"labels": None}, TypeError, "labels"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, ValueError, "labels"),
        ({"labels": torch.zeros(6)}, TypeError, "labels"),
        ({"labels": torch.zeros(6, dtype=torch.int64, device="meta")}, ValueError, "labels"),
        ({"ignore_index": "255"}, TypeError, "ignore_index"),
        ({"reduction": "median"}, ValueError, "reduction"),
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
        "labels": problem.labels,
        **arguments,
    }
    with pytest.raises(error, match=rf"^{named}: got .*must be"):
        target.functions.pseudo_likelihood_nll(**given_arguments)


def test_label_out_of_range(host_target: Target) -> None:
    problem = make_problem([random_graph(6, 14, 8)], [FACTORED], 3, 5, ignored=0.0)
    labels = problem.labels.clone()
    labels[4] = 3
    with pytest.raises(ValueError, match=r"^labels: got 3 at node 4, must be in 0\.\.2 or"):
        host_target.functions.pseudo_likelihood_nll(
            problem.tensors["unary"], problem.potentials, labels
        )
