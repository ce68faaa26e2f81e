"""The oracle against itself, and the reference in dtypes and at sizes of its own."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from problems import FACTORED, OPERATORS, TABLE, Problem, make_problem, random_graph
from strategies import problems

from deepcrf_ext import reference


@given(problem=problems(label_counts=[1, 2, 3], max_nodes=4))
def test_oracle_conditionals_are_those_of_its_joint_distribution(problem: Problem) -> None:
    unary = oracle.array(problem.tensors["unary"])
    edge_lists = [oracle.edges(potential) for potential in problem.potentials]
    labelling = [max(label, 0) % unary.shape[1] for label in problem.labels.tolist()]
    losses = oracle.pseudo_likelihood_nll(unary, edge_lists, labelling, ignore_index=-1)
    joint = oracle.joint_probabilities(unary, [edge for edges in edge_lists for edge in edges])
    assert joint.sum() == pytest.approx(1)
    for node, loss in enumerate(losses):
        alternatives = np.moveaxis(joint, node, 0)[
            (slice(None), *labelling[:node], *labelling[node + 1 :])
        ]
        wanted = alternatives[labelling[node]] / alternatives.sum()
        assert np.exp(-loss) == pytest.approx(wanted)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", [FACTORED, TABLE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_works_in_the_dtype_given(operator: str, kind: str, dtype: torch.dtype) -> None:
    problem = make_problem([random_graph(12, 30, 4)], [kind], 4, 9)
    problem = problem.to(torch.device("cpu"), dtype)
    value = OPERATORS[operator](reference, problem)
    exact = OPERATORS[operator](reference, problem.to(torch.device("cpu"), torch.float64))
    assert value.dtype == dtype
    error = (value.double() - exact).abs().max() / exact.abs().max()
    assert error <= 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", reference.__all__)
def test_names_are_functions_and_not_their_modules(name: str) -> None:
    assert callable(getattr(reference, name))
