"""float16 holds 65,504 and no more: what is summed must not be rounded to it too early."""

from __future__ import annotations

import pytest
import torch
from problems import FACTORED, TABLE, Problem, make_problem
from targets import Target

from deepcrf_ext import EdgeGraph, TablePotential

CPU = torch.device("cpu")
every_kind = pytest.mark.parametrize("kind", [FACTORED, TABLE])


def star(num_edges: int) -> EdgeGraph:
    """One node joined to many."""
    return EdgeGraph.from_edges(
        torch.zeros(num_edges, dtype=torch.int64), torch.arange(1, num_edges + 1), num_edges + 1
    )


def star_problem(kind: str, num_edges: int, energy: float) -> Problem:
    """Edges that all charge `energy` for equal labels, of which all nodes have the first."""
    problem = make_problem([star(num_edges)], [kind], 2, 3, ignored=0.0)
    charge = energy * torch.eye(2, dtype=torch.float64)
    tensors = {"marginals": torch.tensor([1.0, 0.0]).expand(num_edges + 1, 2)}
    if kind == TABLE:
        tensors["table0"] = charge.expand(num_edges, 2, 2)
    else:
        # relu(source + target) is 2 in every feature.
        tensors["source0"] = tensors["target0"] = torch.ones(num_edges + 1, 3)
        tensors["weight0"] = (charge / 6)[..., None].expand(2, 2, 3)
        tensors["bias0"] = torch.zeros(2, 2)
    tensors["unary"] = torch.zeros(num_edges + 1, 2)
    problem = problem.with_tensors({name: value.double() for name, value in tensors.items()})
    problem.labels.zero_()
    return problem.to(CPU, torch.float16)


@every_kind
@pytest.mark.parametrize("differentiate", [False, True])
def test_mean_of_losses_whose_sum_is_too_large(
    target: Target, kind: str, differentiate: bool
) -> None:
    problem = star_problem(kind, 600, 300.0).to(target.device, torch.float16)
    problem = problem.map(lambda tensor: tensor.detach().requires_grad_(differentiate))
    mean = target.functions.pairwise_nll(problem.potentials[0], problem.labels)
    assert mean.dtype == torch.float16
    assert float(mean) == pytest.approx(300, rel=1e-2)
    total = target.functions.pairwise_nll(problem.potentials[0], problem.labels, reduction="sum")
    assert total.isposinf()  # as torch.sum
    if differentiate:
        mean.backward()
        name = "table0" if kind == TABLE else "bias0"
        gradient = problem.tensors[name].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        of_truth = float(gradient[..., 0, 0].sum(dtype=torch.float64))
        assert of_truth == pytest.approx(1, rel=1e-2)


def test_mean_over_a_million_edges(host_target: Target) -> None:
    if host_target.name == "cuda_on_host":
        pytest.skip("a million edges take the emulation minutes")
    problem = star_problem(TABLE, 1_000_000, 8.0)
    table = problem.tensors["table0"].detach().requires_grad_()
    mean = host_target.functions.pairwise_nll(
        TablePotential(problem.graphs[0], table), problem.labels
    )
    assert float(mean) == pytest.approx(8.7, rel=1e-2)
    mean.backward()
    assert table.grad is not None
    assert table.grad.isfinite().all()


@every_kind
def test_messages_between_which_sums_are_too_large(operator_target: Target, kind: str) -> None:
    """The hub hears of 900 · 100 = 90,000 from its neighbours; its unary makes up for it."""
    problem = star_problem(kind, 900, 100.0).to(operator_target.device, torch.float16)
    received = operator_target.functions.pairwise_messages(
        problem.potentials[0], problem.tensors["marginals"]
    )
    assert received[0].tolist() == [float("inf"), 0.0]  # as a matrix product
    assert float(received[1, 0]) == pytest.approx(100, rel=1e-2)
    marginals = operator_target.functions.mean_field(
        problem.tensors["unary"], problem.potentials, iterations=3
    )
    assert marginals.isfinite().all()
    # One node against 900: it takes whichever label, the others then the other one.
    torch.testing.assert_close(marginals.sum(1).float(), torch.ones(901), rtol=0, atol=1e-2)
    loss = operator_target.functions.pseudo_likelihood_nll(
        problem.tensors["unary"], problem.potentials, problem.labels, reduction="none"
    )
    assert float(loss[1]) == pytest.approx(100, rel=1e-2)


@every_kind
@pytest.mark.parametrize("scale", [32768.0, 2.0**-20])
def test_gradients_of_scaled_losses(operator_target: Target, kind: str, scale: float) -> None:
    """As a gradient scaler has it: what a gradient is scaled by on its way does not spoil it."""
    problem = make_problem([star(50)], [kind], 3, 5, ignored=0.0)
    problem = problem.to(operator_target.device, torch.float16)
    name = "table0" if kind == TABLE else "weight0"
    gradients = []
    for factor in (1.0, scale):
        leaf = problem.tensors[name].detach().requires_grad_()
        potential = problem.with_tensors({name: leaf}).potentials[0]
        loss = operator_target.functions.pairwise_nll(potential, problem.labels)
        (gradient,) = torch.autograd.grad(loss.float() * factor, leaf)
        gradients.append(gradient.double() / factor)
    # float16's smallest number, 2^-24, times what it was scaled by.
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=max(2e-7, 6e-8 / scale))
