"""Random CRFs for the operator tests, and the operators as functions of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext import EdgeGraph, FactoredPotential, RangeBox, TablePotential

FACTORED, TABLE = "factored", "table"


@dataclass(frozen=True)
class Problem:
    """A CRF with labels and marginals on its nodes.

    `tensors` holds all floating-point inputs by name: unary, marginals, and of potential i
    source{i}, target{i}, weight{i}, bias{i} or table{i}, as `kinds[i]` says.
    """

    graphs: tuple[EdgeGraph, ...]
    kinds: tuple[str, ...]
    tensors: dict[str, Tensor]
    labels: Tensor
    ignore_index: int

    @property
    def potentials(self) -> list[FactoredPotential | TablePotential]:
        """The potentials, built from the tensors."""
        return [self._potential(i) for i in range(len(self.graphs))]

    def _potential(self, i: int) -> FactoredPotential | TablePotential:
        if self.kinds[i] == TABLE:
            return TablePotential(self.graphs[i], self.tensors[f"table{i}"])
        names = ("source", "target", "weight", "bias")
        return FactoredPotential(self.graphs[i], *(self.tensors[f"{name}{i}"] for name in names))

    def map(self, function: Callable[[Tensor], Tensor]) -> Problem:
        """The problem with `function` of every tensor."""
        return self.with_tensors({name: function(value) for name, value in self.tensors.items()})

    def with_tensors(self, tensors: dict[str, Tensor]) -> Problem:
        """The problem with some tensors exchanged."""
        return replace(self, tensors={**self.tensors, **tensors})

    def to(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """The problem on another device in another dtype."""
        moved = self.map(lambda tensor: tensor.to(device, dtype))
        return replace(
            moved,
            graphs=tuple(graph.to(device) for graph in self.graphs),
            labels=self.labels.to(device),
        )


def make_problem(
    graphs: Sequence[EdgeGraph],
    kinds: Sequence[str],
    num_labels: int,
    dim: int,
    *,
    ignore_index: int = 255,
    ignored: float = 0.2,
    scale: float = 1.0,
    seed: int = 0,
) -> Problem:
    """A float64 problem on the CPU, energies times `scale`, a share `ignored` of nodes ignored."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    num_nodes = graphs[0].num_nodes
    tensors = {
        "unary": scale * normal(num_nodes, num_labels),
        "marginals": normal(num_nodes, num_labels).softmax(1),
    }
    for i, (graph, kind) in enumerate(zip(graphs, kinds, strict=True)):
        if kind == TABLE:
            tensors[f"table{i}"] = scale * normal(graph.num_edges, num_labels, num_labels)
        else:
            tensors[f"source{i}"] = normal(num_nodes, dim)
            tensors[f"target{i}"] = normal(num_nodes, dim)
            tensors[f"weight{i}"] = scale * normal(num_labels, num_labels, dim) / dim**0.5
            tensors[f"bias{i}"] = scale * normal(num_labels, num_labels)
    labels = torch.randint(num_labels, (num_nodes,), generator=generator)
    labels[torch.rand(num_nodes, generator=generator) < ignored] = ignore_index
    return Problem(tuple(graphs), tuple(kinds), tensors, labels, ignore_index)


def grid_problem(
    height: int, width: int, kind: str, num_labels: int, dim: int, **options: Any
) -> Problem:
    """A problem with both of the paper's relations on a grid, two potentials of one kind."""
    boxes = (RangeBox.surrounding(height, width), RangeBox.above_below(height, width))
    graphs = [EdgeGraph.from_range_box(height, width, box) for box in boxes]
    return make_problem(graphs, [kind] * 2, num_labels, dim, **options)


def random_graph(num_nodes: int, num_edges: int, seed: int) -> EdgeGraph:
    """A graph of random edges, self loops and duplicates among them."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(num_nodes, (2, num_edges), generator=generator)
    return EdgeGraph.from_edges(ends[0], ends[1], num_nodes)


# Every public operator as a function of (functions, problem), with a result per edge or node. The
# mean of the pairwise loss may take another way through an implementation.
OPERATORS: dict[str, Callable[[Any, Problem], Tensor]] = {
    "pairwise_nll": lambda functions, problem: functions.pairwise_nll(
        problem.potentials[0], problem.labels, problem.ignore_index, "none"
    ),
    "pairwise_nll_mean": lambda functions, problem: functions.pairwise_nll(
        problem.potentials[0], problem.labels, problem.ignore_index, "mean"
    ),
    "pairwise_messages": lambda functions, problem: functions.pairwise_messages(
        problem.potentials[0], problem.tensors["marginals"]
    ),
    "mean_field": lambda functions, problem: functions.mean_field(
        problem.tensors["unary"], problem.potentials, iterations=2
    ),
    "pseudo_likelihood_nll": lambda functions, problem: functions.pseudo_likelihood_nll(
        problem.tensors["unary"], problem.potentials, problem.labels, problem.ignore_index, "none"
    ),
}


def used_tensors(operator: str, problem: Problem) -> list[str]:
    """The names of the tensors that an operator's result depends on."""
    if operator in ("mean_field", "pseudo_likelihood_nll"):
        return [name for name in problem.tensors if name != "marginals"]
    names = [name for name in problem.tensors if name.endswith("0")]
    return [*names, "marginals"] if operator == "pairwise_messages" else names


def value_and_gradients(
    operator: str,
    functions: Any,
    problem: Problem,
    wanted: Sequence[str] | None = None,
    upstream_layout: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, Tensor]:
    """The result, alone and with its gradient in every tensor of `wanted` (default: all used).

    "prediction" is the result where no gradient is wanted, "value" where one is. The gradient
    arriving from above is random, of odd multiples of 1/8, which every dtype holds.
    """
    names = used_tensors(operator, problem) if wanted is None else list(wanted)
    with torch.no_grad():
        prediction = OPERATORS[operator](functions, problem)
    leaves = {name: problem.tensors[name].detach().requires_grad_() for name in names}
    value = OPERATORS[operator](functions, problem.with_tensors(leaves))
    generator = torch.Generator().manual_seed(1)
    upstream = (2 * torch.randint(-4, 4, value.shape, generator=generator) + 1) / 8
    gradients = torch.autograd.grad(
        value,
        list(leaves.values()),
        upstream_layout(upstream.to(value)),
        allow_unused=True,
        materialize_grads=True,
    )
    results = {"prediction": prediction, "value": value.detach()}
    return {**results, **dict(zip(names, gradients, strict=True))}
