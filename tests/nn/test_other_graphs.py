"""Training over graphs that are no grids, as docs/python.md has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import deepcrf_ext as dc
from deepcrf_ext.nn import PairwisePotential

Sample = tuple[Tensor, dc.EdgeGraph, Tensor]


def noisy(labels: Tensor, num_labels: int) -> Tensor:
    """Features that tell labels with errors."""
    return functional.one_hot(labels, num_labels) + 1.2 * torch.randn(len(labels), num_labels)


def sequences() -> Sample:
    """Of several lengths, whose labels seldom change."""
    graphs, labels = [], []
    for length in (400, 1, 250, 2):
        changes = torch.rand(length) < 0.1
        labels.append((changes.cumsum(0) + torch.randint(3, ())) % 3)
        steps = torch.arange(length - 1)
        graphs.append(dc.EdgeGraph.from_edges(steps, steps + 1, length))
    truth = torch.cat(labels)
    return noisy(truth, 3), dc.EdgeGraph.batch(graphs), truth


def points() -> Sample:
    """In a ball and around it, joined to the nearest."""
    positions = torch.rand(500, 3)
    truth = ((positions - 0.5).norm(dim=1) < 0.4).long()
    near = torch.cdist(positions, positions).topk(9, largest=False).indices[:, 1:]
    first = torch.arange(500).repeat_interleave(8)
    return noisy(truth, 2), dc.EdgeGraph.from_edges(first, near.flatten(), 500), truth


def molecules() -> Sample:
    """Trees of 1 to 11 nodes, neighbours of which differ, as one list of edges both ways."""
    ends, labels = [torch.empty(2, 0, dtype=torch.int64)], []
    for size in torch.randint(1, 12, (80,)).tolist():
        parents = [int(torch.randint(child, ())) for child in range(1, size)]
        own = [int(torch.randint(2, ()))]
        for parent in parents:
            own.append(1 - own[parent])
        bonds = torch.tensor([parents, list(range(1, size))], dtype=torch.int64) + len(labels)
        ends += [bonds, bonds.flip(0)]
        labels += own
    truth = torch.tensor(labels)
    return noisy(truth, 2), dc.EdgeGraph.from_edges(*torch.cat(ends, 1), len(truth)), truth


@pytest.mark.parametrize("draw", [sequences, points, molecules])
def test_the_pairwise_term_helps(draw: Callable[[], Sample]) -> None:
    torch.manual_seed(0)
    (features, graph, labels), (own, other, truth) = draw(), draw()
    num_labels = features.shape[1]
    network = torch.nn.Linear(num_labels, num_labels)
    pairwise = PairwisePotential(num_labels, num_labels, hidden=16)
    weight = torch.nn.Parameter(torch.tensor(0.1))
    optimiser = torch.optim.Adam([*network.parameters(), *pairwise.parameters(), weight], 3e-2)
    for step in range(60):
        unary, potential = -network(features), pairwise(features, graph)
        if step < 30:
            loss = functional.cross_entropy(-unary, labels) + dc.pairwise_nll(potential, labels)
        else:
            marginals = dc.mean_field(unary, [potential.scaled(weight)], iterations=5)
            loss = functional.nll_loss(marginals.clamp(min=1e-9).log(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        unary = -network(own)
        marginals = dc.mean_field(unary, [pairwise(own, other).scaled(weight)], iterations=5)
    alone, joint = ((scores.argmax(1) == truth).float().mean() for scores in (-unary, marginals))
    assert joint > alone + 0.1
