"""Operators under `torch.vmap`, `torch.func`, batches of gradients and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accuracy import assert_close
from problems import FACTORED, OPERATORS, TABLE, grid_problem, used_tensors
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import deepcrf_ext as dc
from deepcrf_ext.nn import grid_graphs
from deepcrf_ext.nn.relations import NAMED_RELATIONS
from deepcrf_ext.ops import _backend

IMAGE = (torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) * 41 % 256).float()
LOGITS = (torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) * 17 % 29).double() / 10
PROBLEMS = {kind: grid_problem(4, 5, kind, 3, 4) for kind in (FACTORED, TABLE)}
SIZES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def of_potential(operator: str, kind: str, scale: Tensor) -> Tensor:
    """An operator over pairwise potentials, a tensor of the first one times a scale."""
    problem = PROBLEMS[kind]
    name = next(name for name in used_tensors(operator, problem) if name in ("source0", "table0"))
    tensors = {**problem.tensors, name: problem.tensors[name] * scale}
    return OPERATORS[operator](dc, problem.with_tensors(tensors))


Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    **{f"{name}-{kind}": partial(of_potential, name, kind) for name in OPERATORS
       for kind in (FACTORED, TABLE)},
    "dense_crf": lambda scale: dc.dense_crf(scale * LOGITS, IMAGE, iterations=2),
    "dense_crf-weight": lambda scale: dc.dense_crf(
        LOGITS, IMAGE, dc.DenseCRFParams(bilateral_weight=scale), iterations=2
    ),
    "permutohedral_filter": lambda scale: dc.permutohedral_filter(
        scale * LOGITS[0, 0], IMAGE[0, 1] / 30
    ),
    "dense_crf_loss": lambda scale: dc.dense_crf_loss((scale * LOGITS).softmax(1), IMAGE),
    "gated_crf_loss": lambda scale: dc.gated_crf_loss((scale * LOGITS).softmax(1), IMAGE),
}  # fmt: skip
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def scalar(function: Function, scale: Tensor) -> Tensor:
    return function(scale).square().sum()


def gradient(function: Function, scale: Tensor) -> Tensor:
    """By `backward`."""
    scale = scale.clone().requires_grad_()
    scalar(function, scale).backward()
    assert scale.grad is not None
    return scale.grad


@every_function
def test_vmap(function: Function) -> None:
    wanted = torch.stack([function(scale) for scale in SIZES])
    assert torch.equal(torch.vmap(function)(SIZES), wanted)


def test_a_registered_operator_has_a_rule_for_batches(capfd: pytest.CaptureFixture[str]) -> None:
    """Which compiled code comes to; without one torch warns and takes a slow way of its own."""

    def total(probabilities: Tensor) -> Tensor:
        args = (IMAGE, None, 2, [1.0, 0.1, 0.1], False)
        return torch.ops.deepcrf_ext.gated_crf_loss_total(probabilities, *args)[0]

    batch = torch.stack([LOGITS, 2 * LOGITS]).softmax(2)
    assert torch.equal(torch.vmap(total)(batch), torch.stack([total(each) for each in batch]))
    assert "performance drop" not in capfd.readouterr().err


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="got an empty batch of torch.vmap, must have an element"):
        torch.vmap(dc.gated_crf_loss)(LOGITS[None][:0], IMAGE[None][:0])


@every_function
def test_gradients_outside_vmap(function: Function) -> None:
    """What is a batch within does not say itself that a gradient is wanted."""
    scales = SIZES.clone().requires_grad_()
    torch.vmap(partial(scalar, function))(scales).sum().backward()
    assert scales.grad is not None
    assert_close(scales.grad, torch.stack([gradient(function, scale) for scale in SIZES]))


@every_function
def test_gradients_of_transforms(function: Function) -> None:
    of_scale = partial(scalar, function)
    wanted = torch.stack([gradient(function, scale) for scale in SIZES])
    assert_close(torch.func.grad(of_scale)(SIZES[1]), wanted[1])
    of_each = torch.vmap(torch.func.grad(of_scale))(SIZES)
    assert_close(of_each, wanted)
    assert not of_each.requires_grad
    assert_close(torch.func.grad(lambda scales: torch.vmap(of_scale)(scales).sum())(SIZES), wanted)


@every_function
def test_jacobians(function: Function) -> None:
    wanted = torch.autograd.functional.jacobian(function, SIZES[2])
    assert_close(torch.func.jacrev(function)(SIZES[2]), wanted)
    batched = torch.autograd.functional.jacobian(function, SIZES[2], vectorize=True)
    assert_close(batched, wanted)


def test_what_is_learnt_outside_of_a_transform() -> None:
    """One argument of an operator is made of another there: their gradients stay apart."""
    layer = dc.nn.DenseCRF(3, 2, learn=("weights", "widths")).double()
    image = IMAGE.double()

    def loss(image: Tensor) -> Tensor:
        return layer(LOGITS, image).square().sum()

    own = image.clone().requires_grad_()
    loss(own).backward()
    assert own.grad is not None
    assert_close(torch.func.grad(loss)(image).detach(), own.grad)
    wanted = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    torch.vmap(loss, randomness="same")(image[None]).sum().backward()
    for parameter, gradient in zip(layer.parameters(), wanted, strict=True):
        assert_close(parameter.grad, gradient)


IN_FEATURES: dict[str, Function] = {
    "colours": lambda scale: dc.dense_crf(LOGITS, scale * IMAGE, iterations=2),
    "points": lambda scale: dc.permutohedral_filter(LOGITS[0, 0], scale * IMAGE[0, 1] / 30),
}
"""Learnt widths and images have gradients of their own, made of many operators."""


@pytest.mark.parametrize("function", IN_FEATURES.values(), ids=IN_FEATURES)
def test_batches_of_gradients_in_features(function: Function) -> None:
    wanted = torch.autograd.functional.jacobian(function, SIZES[1])
    assert_close(torch.func.jacrev(function)(SIZES[1]), wanted)
    batched = torch.autograd.functional.jacobian(function, SIZES[1], vectorize=True)
    assert_close(batched, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("function", [*FUNCTIONS.values(), *IN_FEATURES.values()])
def test_checkpoints(function: Function, reentrant: bool) -> None:
    """They compute what backward reads once more, and let it be read but once."""
    scale = SIZES[1].clone().requires_grad_()
    checkpoint(partial(scalar, function), scale, use_reentrant=reentrant).backward()
    assert torch.equal(scale.grad, gradient(function, SIZES[1]))


@every_function
def test_second_derivatives(request: pytest.FixtureRequest, function: Function) -> None:
    """As those of `backward`: of filters and losses of images, and errors else."""
    second = torch.func.grad(torch.func.grad(partial(scalar, function)))
    name = request.node.callspec.id
    if not any(word in name for word in ("filter", "dense", "gated")):
        with pytest.raises(RuntimeError, match="gradient is not implemented"):
            second(SIZES[1])
        return
    scale = SIZES[1].clone().requires_grad_()
    (first,) = torch.autograd.grad(scalar(function, scale), scale, create_graph=True)
    (wanted,) = torch.autograd.grad(first, scale, materialize_grads=True)
    assert_close(second(SIZES[1]), wanted)


def test_a_transform_runs_an_operator_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the value and once for its gradient; what has none costs no pass."""
    native, runs = _backend.native(), []
    kernel = native.gated_crf_loss
    monkeypatch.setattr(native, "gated_crf_loss", lambda *args: (runs.append(1), kernel(*args)))
    torch.func.grad(FUNCTIONS["gated_crf_loss"])(SIZES[1])
    assert len(runs) == 2


def test_what_has_no_gradient_hands_none_on() -> None:
    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> None:
            return None

    function = FUNCTIONS["gated_crf_loss"]
    assert torch.func.grad(lambda scale: scale + Constant.apply(function(scale)))(SIZES[1]) == 1


def test_labels_of_a_batch_are_checked() -> None:
    problem = grid_problem(4, 5, FACTORED, 3, 4)
    labels = torch.stack([problem.labels, problem.labels])

    def loss(labels: Tensor) -> Tensor:
        return dc.pairwise_nll(problem.potentials[0], labels)

    wanted = torch.stack([loss(own) for own in labels])
    assert torch.equal(torch.vmap(loss)(labels), wanted)
    labels[1, 7] = 3
    with pytest.raises(ValueError, match="labels: got 3 at node 7, must be in 0..2"):
        torch.vmap(loss)(labels)


def test_a_batch_of_labels_has_pseudo_likelihoods() -> None:
    problem = grid_problem(4, 5, FACTORED, 3, 4)
    labels = torch.stack([problem.labels, problem.labels.flip(0)])

    def loss(labels: Tensor) -> Tensor:
        return dc.pseudo_likelihood_nll(problem.tensors["unary"], problem.potentials, labels)

    assert torch.equal(torch.vmap(loss)(labels), torch.stack([loss(own) for own in labels]))


def test_what_is_kept_belongs_to_no_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = grid_graphs.DeviceCache(1 << 20, grid_graphs.graph_tensors)
    monkeypatch.setattr(grid_graphs, "_CACHE", cache)

    def function(scale: Tensor) -> Tensor:
        relation = NAMED_RELATIONS["surrounding"]
        graph = grid_graphs.relation_graph(relation, 1, 4, 5, torch.device("cpu"))
        table = scale * torch.ones(graph.num_edges, 3, 3, dtype=scale.dtype)
        return dc.pairwise_nll(dc.TablePotential(graph, table), torch.zeros(20).long())

    torch.func.grad(function)(SIZES[1])
    (graph,) = cache._values.values()
    for tensor in grid_graphs.graph_tensors(graph):
        assert not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_traces_of_jit_are_refused() -> None:
    def function(logits: Tensor) -> Tensor:
        return dc.gated_crf_loss(logits.softmax(1), IMAGE[:1])

    with pytest.raises(RuntimeError, match=r"deepcrf_ext::\w+: got a call of torch.jit.trace"):
        torch.jit.trace(function, torch.zeros(1, 2, 4, 5))


def test_images_and_compatibilities_of_a_batch() -> None:
    """Their values are not looked at; lattices, each of its own number of points, have no batch."""

    def loss(image: Tensor) -> Tensor:
        return dc.gated_crf_loss(LOGITS[:1].softmax(1), image[None])

    def refined(matrix: Tensor) -> Tensor:
        return dc.dense_crf(LOGITS, IMAGE, dc.DenseCRFParams(compatibility=matrix), iterations=2)

    matrices = torch.stack([1 - torch.eye(3), torch.arange(9.0).view(3, 3)])
    for function, batch in ((loss, IMAGE), (refined, matrices)):
        assert torch.equal(torch.vmap(function)(batch), torch.stack([function(x) for x in batch]))
    with pytest.raises(RuntimeError, match=r"permutohedral_lattice: .* called on each"):
        torch.vmap(lambda image: dc.dense_crf(LOGITS[:1], image[None]))(IMAGE)
    with pytest.raises(RuntimeError, match=r"permutohedral_lattice: .* called on each"):
        torch.vmap(lambda x: dc.dense_crf(LOGITS, IMAGE, dc.DenseCRFParams(bilateral_sxy=x)))(SIZES)
