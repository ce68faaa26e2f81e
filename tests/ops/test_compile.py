"""Compiled operators: whole graphs, forward and backward, that serve every size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accuracy import assert_close
from problems import (
    FACTORED,
    OPERATORS,
    TABLE,
    Problem,
    grid_problem,
    make_problem,
    random_graph,
    used_tensors,
)
from targets import OPERATOR_TARGETS, Target
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import deepcrf_ext
from deepcrf_ext import EdgeGraph
from deepcrf_ext.nn import PairwisePotential


def sized_problem(loops: bool, kind: str, height: int, width: int) -> Problem:
    if not loops:
        return grid_problem(height, width, kind, 4, 11, seed=height)
    nodes = height * width
    graphs = [random_graph(nodes, edges, height) for edges in (8 * nodes, 6 * nodes)]
    assert all(graph.num_self_loops for graph in graphs)
    return make_problem(graphs, [kind] * 2, 4, 11, seed=height)


# What is compiled around the kernels does not depend on whether they are emulated.
TARGETS = [target for target in OPERATOR_TARGETS if target.name != "cuda_on_host"]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", [FACTORED, TABLE])
@pytest.mark.parametrize("differentiate", [True, False])
@pytest.mark.parametrize(("dtype", "loops"), [(torch.float32, False), (torch.float16, True)])
def test_one_graph_serves_every_size(
    target: Target,
    operator: str,
    kind: str,
    differentiate: bool,
    dtype: torch.dtype,
    loops: bool,
) -> None:
    """With self loops, whose number is a Python int, two do: torch learns that it varies."""

    def function(graphs: list[EdgeGraph], labels: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        problem = Problem(tuple(graphs), (kind, kind), tensors, labels, 255)
        return OPERATORS[operator](target.functions, problem)

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((4, 5), (5, 6), (7, 3), (6, 8)):
        problem = sized_problem(loops, kind, height, width).to(target.device, dtype)
        problem = problem.map(lambda tensor: tensor.detach().requires_grad_(differentiate))
        arguments = (list(problem.graphs), problem.labels, problem.tensors)
        leaves = [problem.tensors[name] for name in used_tensors(operator, problem)]
        results = []
        for run in (compiled, function):
            value = run(*arguments)
            gradients: tuple[Tensor, ...] = ()
            if differentiate:
                gradients = torch.autograd.grad(
                    value.float().sum(), leaves, allow_unused=True, materialize_grads=True
                )
            results.append([value.detach(), *gradients])
        for result, wanted in zip(*results, strict=True):
            assert_close(result, wanted)
    assert counter.frame_count <= 1 + loops


def test_the_default_backend_computes_the_same() -> None:
    """What torch generates around the kernels, of every operator at once: it takes a compiler."""

    def function(graphs: list[EdgeGraph], labels: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        problem = Problem(tuple(graphs), (FACTORED, FACTORED), tensors, labels, 255)
        results = [OPERATORS[operator](deepcrf_ext, problem) for operator in OPERATORS]
        return torch.cat([result.float().flatten() for result in results])

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for height, width in ((3, 4), (5, 7)):
        problem = sized_problem(False, FACTORED, height, width).map(Tensor.float)
        problem = problem.map(lambda tensor: tensor.detach().requires_grad_())
        arguments = (list(problem.graphs), problem.labels, problem.tensors)
        results = []
        for run in (compiled, function):
            value = run(*arguments)
            gradients = torch.autograd.grad(value.sum(), list(problem.tensors.values()))
            results.append([value.detach(), *gradients])
        for result, wanted in zip(*results, strict=True):
            assert_close(result, wanted)


def test_compiled_code_checks_labels() -> None:
    problem = grid_problem(3, 4, TABLE, 3, 4)
    compiled = torch.compile(
        lambda labels: deepcrf_ext.pairwise_nll(problem.potentials[0], labels),
        backend="aot_eager",
        fullgraph=True,
    )
    for label in (0, 2, 255):
        labels = torch.full((12,), label)
        assert torch.equal(
            compiled(labels), deepcrf_ext.pairwise_nll(problem.potentials[0], labels)
        )
    for label in (3, 254, -1):
        labels[4] = label
        with pytest.raises(RuntimeError, match=r"labels: must be in 0\.\.2 or ignore_index = 255"):
            compiled(labels)


class GraphNetwork(torch.nn.Module):
    """A network over any graph, whose edges are an input."""

    def __init__(self) -> None:
        super().__init__()
        self.unary = torch.nn.Linear(4, 3)
        self.pairwise = PairwisePotential(4, 3, hidden=5)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        graph = EdgeGraph.from_edges(edges[0], edges[1], features.shape[0])
        potential = self.pairwise(features, graph)
        return deepcrf_ext.mean_field(self.unary(features), [potential], iterations=3)


@pytest.mark.parametrize("strict", [True, False])
def test_a_network_over_edges_exports_for_any_graph(strict: bool) -> None:
    network = GraphNetwork()
    features, edges = torch.randn(6, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    sizes = {"features": {0: Dim("nodes")}, "edges": {1: Dim("edges")}}
    exported = torch.export.export(network, (features, edges), dynamic_shapes=sizes, strict=strict)
    for nodes, count in ((6, 4), (9, 31), (3, 7)):
        arguments = torch.randn(nodes, 4), torch.randint(nodes, (2, count))
        assert_close(exported.module()(*arguments).detach(), network(*arguments).detach())
    with pytest.raises(RuntimeError, match=r"target_index: must be in 0\.\.num_nodes-1"):
        exported.module()(features, torch.tensor([[0, 1, 2], [1, 2, 6]]))


def refined(image: Tensor) -> Tensor:
    return deepcrf_ext.dense_crf(image.cos(), image, iterations=2).sin()


def loss(image: Tensor) -> Tensor:
    return deepcrf_ext.dense_crf_loss(image.cos().softmax(1), image).sin()


def filtered(image: Tensor) -> Tensor:
    colours = image[0].flatten(1).t()
    return deepcrf_ext.permutohedral_filter(colours.cos(), colours / 50).sin()


@pytest.mark.parametrize("function", [refined, loss, filtered])
def test_lattices_cut_a_graph_once(function: Callable[[Tensor], Tensor]) -> None:
    """Without `fullgraph=True`, which is the default: what is before and after them, at a size and
    then at any other."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=False):
        for height, width in ((5, 6), (7, 4), (6, 8), (9, 5)):
            image = torch.rand(1, 3, height, width).mul(255).requires_grad_()
            results = [
                (value, *torch.autograd.grad(value.sum(), image))
                for value in (compiled(image), function(image))
            ]
            for found, wanted in zip(*results, strict=True):
                assert_close(found.detach(), wanted.detach())
    assert counter.frame_count <= 4
