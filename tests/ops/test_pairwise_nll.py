"""pairwise_nll against loops over edges and label pairs, and its arguments."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from problems import FACTORED, Problem, make_problem, random_graph, value_and_gradients
from strategies import problems, reductions
from targets import Target
from threads import torch_threads

import deepcrf_ext as dc
from deepcrf_ext import EdgeGraph, TablePotential

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def small_problem(**options: Any) -> Problem:
    return make_problem([random_graph(6, 14, 8)], [FACTORED], 3, 5, **options)


@given(problem=problems(), reduction=reductions)
def test_equals_enumeration(target: Target, problem: Problem, reduction: str) -> None:
    problem = problem.to(target.device, torch.float64)
    potential, labels = problem.potentials[0], problem.labels.tolist()
    value = target.functions.pairwise_nll(
        potential, problem.labels, ignore_index=problem.ignore_index, reduction=reduction
    )
    edges = oracle.edges(potential)
    losses = oracle.pairwise_nll(edges, labels, problem.ignore_index)
    valid = [problem.ignore_index not in (labels[p], labels[q]) for p, q, _ in edges]
    wanted = oracle.reduced(losses, valid, reduction)
    np.testing.assert_allclose(oracle.array(value), wanted, rtol=1e-10, atol=1e-10)


def test_is_the_exact_likelihood_of_a_single_edge(target: Target) -> None:
    graph = EdgeGraph.from_edges(torch.tensor([1]), torch.tensor([0]), 2)
    problem = make_problem([graph], [FACTORED], 4, 3, ignored=0).to(target.device, torch.float64)
    potential = problem.potentials[0]
    probabilities = oracle.joint_probabilities(np.zeros((2, 4)), oracle.edges(potential))
    value = target.functions.pairwise_nll(potential, problem.labels)
    assert float(value) == pytest.approx(-math.log(probabilities[tuple(problem.labels.tolist())]))


def test_equal_energies_give_the_logarithm_of_the_number_of_pairs(target: Target) -> None:
    graph = random_graph(5, 9, 3).to(target.device)
    potential = TablePotential(graph, torch.full((9, 7, 7), 3.0, device=target.device))
    labels = torch.zeros(5, dtype=torch.int64, device=target.device)
    value = target.functions.pairwise_nll(potential, labels, reduction="none")
    torch.testing.assert_close(value, torch.full_like(value, 2 * math.log(7)))


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_that_is_not_finite_gives_nan(
    target: Target, dtype: torch.dtype, bad: float, differentiate: bool
) -> None:
    """As a matrix product does, where all that it is multiplied by is zero too."""
    problem = small_problem(ignored=0.0).to(target.device, dtype)
    problem.tensors["source0"][:, 2] = problem.tensors["target0"][:, 2] = -1
    problem.tensors["weight0"][1, 0, 2] = bad
    problem.tensors["weight0"].requires_grad_(differentiate)
    assert target.functions.pairwise_nll(problem.potentials[0], problem.labels).isnan()


def test_mean_is_the_default_and_255_is_ignored(target: Target) -> None:
    problem = small_problem(ignored=0.5).to(target.device, torch.float64)
    assert (problem.labels == 255).any()
    potential, labels = problem.potentials[0], problem.labels
    losses = target.functions.pairwise_nll(potential, labels, reduction="none")
    ends = potential.graph.edge_index()
    valid = (labels[ends] != 255).all(0)
    assert 0 < valid.sum() < valid.numel()
    assert (losses[~valid] == 0).all()
    mean = target.functions.pairwise_nll(potential, labels)
    torch.testing.assert_close(mean, losses[valid].mean())


@pytest.mark.parametrize("ignored", [0.0, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_valid_gives_zero_with_zero_gradients(
    target: Target, ignored: float, reduction: str
) -> None:
    graph = random_graph(6, 14 if ignored else 0, 8)
    problem = make_problem([graph], [FACTORED], 3, 5, ignored=ignored)
    problem = problem.to(target.device, torch.float32)
    problem = problem.map(lambda tensor: tensor.requires_grad_())
    value = target.functions.pairwise_nll(
        problem.potentials[0], problem.labels, reduction=reduction
    )
    assert (value == 0).all()
    value.sum().backward()
    for name in ("source0", "target0", "weight0", "bias0"):
        gradient = problem.tensors[name].grad
        assert gradient is not None, name
        assert (gradient == 0).all(), name


def test_gradient_of_a_reduction(target: Target) -> None:
    problem = small_problem().to(target.device, torch.float64)
    losses = value_and_gradients("pairwise_nll", target.functions, problem)["value"]
    num_valid = int((losses != 0).sum())
    gradients = []
    for reduction in ("mean", "sum"):
        leaf = problem.tensors["weight0"].detach().requires_grad_()
        potential = problem.with_tensors({"weight0": leaf}).potentials[0]
        value = target.functions.pairwise_nll(potential, problem.labels, reduction=reduction)
        gradients.append(torch.autograd.grad(value, leaf)[0])
    torch.testing.assert_close(gradients[0] * num_valid, gradients[1])


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
@pytest.mark.parametrize("ignore_index", [255, -1, 0, 2])
def test_labels_of_any_integer_dtype(target: Target, dtype: torch.dtype, ignore_index: int) -> None:
    problem = small_problem(ignored=0.0).to(target.device, torch.float64)
    labels = problem.labels.to(dtype)
    if torch.iinfo(dtype).min <= ignore_index <= torch.iinfo(dtype).max:
        labels[1] = ignore_index
    value = target.functions.pairwise_nll(
        problem.potentials[0], labels, ignore_index=ignore_index, reduction="none"
    )
    wanted = oracle.pairwise_nll(oracle.edges(problem.potentials[0]), labels.tolist(), ignore_index)
    np.testing.assert_allclose(oracle.array(value), wanted, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"potential": torch.zeros(3)}, TypeError, "potential"),
        ({"labels": [0] * 6}, TypeError, "labels"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, "labels"),
        ({"labels": torch.zeros(6, 1, dtype=torch.int64)}, ValueError, "labels"),
        ({"labels": torch.zeros(6)}, TypeError, "labels"),
        ({"labels": torch.zeros(6, dtype=torch.bool)}, TypeError, "labels"),
        ({"labels": torch.zeros(6, dtype=torch.int64, device="meta")}, ValueError, "labels"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index"),
        ({"ignore_index": None}, TypeError, "ignore_index"),
        ({"ignore_index": 2**63}, ValueError, "ignore_index"),
        ({"reduction": "median"}, ValueError, "reduction"),
        ({"reduction": None}, ValueError, "reduction"),
    ],
)
def test_bad_arguments(
    target: Target, arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    problem = small_problem().to(target.device, torch.float32)
    options = {"labels": problem.labels, **arguments}
    potential = options.pop("potential", problem.potentials[0])
    with pytest.raises(error, match=rf"^{named}: got .*must be"):
        target.functions.pairwise_nll(potential, **options)


@pytest.mark.parametrize("label", [-1, 3, 254, 2**40])
def test_label_out_of_range(host_target: Target, label: int) -> None:
    problem = small_problem(ignored=0.0).to(host_target.device, torch.float32)
    labels = problem.labels.clone()
    labels[4] = label
    with pytest.raises(ValueError, match=rf"^labels: got {label} at node 4, must be in 0\.\.2 or"):
        host_target.functions.pairwise_nll(problem.potentials[0], labels)
    value = host_target.functions.pairwise_nll(
        problem.potentials[0], labels, ignore_index=label, reduction="none"
    )
    wanted = oracle.pairwise_nll(oracle.edges(problem.potentials[0]), labels.tolist(), label)
    np.testing.assert_allclose(oracle.array(value), wanted, rtol=1e-4, atol=1e-4)


def test_compiled_code_refuses_labels_out_of_range(host_target: Target) -> None:
    problem = small_problem(ignored=0.0).to(host_target.device, torch.float32)
    potential = problem.potentials[0]

    def function(labels: torch.Tensor) -> torch.Tensor:
        return host_target.functions.pairwise_nll(potential, labels)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(problem.labels), function(problem.labels))
    with pytest.raises(RuntimeError, match="labels: must be in"):
        compiled(problem.labels + 3)


@pytest.mark.parametrize("labels", [1, 5, 21, 40])
@pytest.mark.parametrize("edges", [1, 40, 65, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_more_threads_than_blocks_of_edges_change_no_bit(
    labels: int, edges: int, dtype: torch.dtype
) -> None:
    """They then share out the columns of a block's energies, and its features."""
    problem = make_problem([random_graph(30, edges, labels)], [FACTORED], labels, 70)
    problem = problem.to(torch.device("cpu"), dtype)
    results = []
    for threads in (1, 2, 3, 13):
        with torch_threads(threads):
            results.append(value_and_gradients("pairwise_nll_mean", dc, problem))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(other[name], value), name


MANY_LABELS = """
import resource
import torch
import deepcrf_ext as dc

def losses(labels):
    potential = dc.FactoredPotential(
        graph,
        *(torch.randn(size, generator=generator)
          for size in [(32, 1), (32, 1), (labels, labels, 1), (labels, labels)]),
    )
    truth = torch.arange(32) % labels
    return potential, truth, dc.pairwise_nll(potential, truth, reduction="none")

torch.set_num_threads(8)
generator = torch.Generator().manual_seed(0)
graph = dc.EdgeGraph.from_edges(*torch.randint(32, (2, 800), generator=generator), 32)
losses(2)  # starts the threads
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
potential, truth, result = losses(1000)
some = torch.tensor([0, 300, 799])
first, second = graph.edge_index()[:, some]
energies = potential.energies_between(first, second).double()
wanted = energies.flatten(1).neg().logsumexp(1) + energies[range(3), truth[first], truth[second]]
torch.testing.assert_close(result[some].double(), wanted, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told by /proc")
def test_energies_of_many_labels_fit_a_gigabyte() -> None:
    """However many threads there are: 128 edges for each of 8 would take four."""
    result = subprocess.run([sys.executable, "-c", MANY_LABELS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("labels", [2, 5, 21])
def test_infinite_energies_forbid_pairs(target: Target, labels: int) -> None:
    graph = random_graph(6, 14, 8).to(target.device)
    torch.manual_seed(labels)
    table = torch.randn(14, labels, labels)
    table[:, -1, -1] = table[:, 0, 1] = math.inf
    table = table.to(target.device).requires_grad_()
    truth = torch.tensor([0, 0, 0, 0, 0, 255], device=target.device)
    value = target.functions.pairwise_nll(TablePotential(graph, table), truth)
    (gradient,) = torch.autograd.grad(value, table)
    ends = graph.edge_index()
    valid = (truth[ends] != 255).all(0)
    wanted = table.detach()[valid, 0, 0] + (-table.detach()[valid]).flatten(1).logsumexp(1)
    torch.testing.assert_close(value.detach(), wanted.mean())
    assert (gradient[:, 0, 1] == 0).all()
    assert (gradient[:, -1, -1] == 0).all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.sum(), torch.zeros_like(gradient.sum()), atol=1e-5, rtol=0)
