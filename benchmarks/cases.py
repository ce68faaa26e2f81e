"""Random problems of the sizes that the benchmarks run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import deepcrf_ext as dc


@dataclass(frozen=True)
class Case:
    """A surrounding relation over height x width nodes, K labels and D hidden features."""

    height: int
    width: int
    labels: int
    features: int = 512
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """What tables and records call it."""
        return f"{self.height}x{self.width} K={self.labels} D={self.features} {self.dtype}"

    @classmethod
    def parse(cls, name: str) -> Case:
        """The case that `name` was made from."""
        grid, labels, features, dtype = name.split()
        height, width = grid.split("x")
        return cls(int(height), int(width), int(labels[2:]), int(features[2:]), dtype)

    def graph(self, device: torch.device) -> dc.EdgeGraph:
        """Its edges."""
        box = dc.RangeBox.surrounding(self.height, self.width)
        return dc.EdgeGraph.from_range_box(self.height, self.width, box, device)

    def num_edges(self) -> int:
        """E."""
        return self.graph(torch.device("cpu")).num_edges

    def table_bytes(self) -> int:
        """What the materialised energies take."""
        return self.num_edges() * self.labels**2 * getattr(torch, self.dtype).itemsize

    def hidden_bytes(self) -> int:
        """What the hidden vectors of all edges take."""
        return self.num_edges() * self.features * getattr(torch, self.dtype).itemsize


def scaling_edges(cases: Sequence[str]) -> dict[str, int]:
    """The number of edges of those cases that differ in nothing else, as plots show them."""
    parsed = map(Case.parse, cases)
    return {c.name: c.num_edges() for c in parsed if c.labels == 21 and c.dtype == "float32"}


def make_problem(
    case: Case, device: torch.device, requires_grad: bool
) -> tuple[dc.FactoredPotential, Tensor, Tensor]:
    """A potential, unary energies [N, K] and labels [N]; same seed, same numbers."""
    dtype = getattr(torch, case.dtype)
    return random_problem(case.graph(device), case.labels, case.features, dtype, requires_grad)


def random_problem(
    graph: dc.EdgeGraph,
    labels: int,
    features: int,
    dtype: torch.dtype = torch.float32,
    requires_grad: bool = True,
) -> tuple[dc.FactoredPotential, Tensor, Tensor]:
    """The same on any graph."""
    torch.manual_seed(0)
    nodes, device = graph.num_nodes, graph.device

    def leaf(*size: int, scale: float = 1.0) -> Tensor:
        value = (torch.randn(size) * scale).to(device, dtype)
        return value.requires_grad_(requires_grad)

    potential = dc.FactoredPotential(
        graph,
        leaf(nodes, features),
        leaf(nodes, features),
        leaf(labels, labels, features, scale=features**-0.5),
        leaf(labels, labels),
    )
    unary = torch.randn(nodes, labels).to(device, dtype)
    return potential, unary, torch.randint(labels, (nodes,)).to(device)
