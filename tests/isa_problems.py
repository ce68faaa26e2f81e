"""Problems that every CPU instruction set is to solve as the reference does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deepcrf_ext as dc

SIZES = [
    (30, 200, 21, 70),
    (40, 300, 13, 33),
    (20, 100, 25, 17),
    (33, 50, 2, 130),
    (12, 40, 60, 9),
    (1, 1, 1, 1),
    (5, 0, 3, 64),
    (700, 900, 70, 270),
]
"""Nodes, edges, labels and features."""


def values_and_gradients(
    functions: Any, size: tuple[int, int, int, int], dtype: torch.dtype
) -> list[Tensor]:
    """Marginals, values and gradients by the operators of this package or of the reference."""
    nodes, edges, labels, features = size
    generator = torch.Generator().manual_seed(nodes + labels + features)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    ends = torch.randint(nodes, (2, edges), generator=generator)
    graph = dc.EdgeGraph.from_edges(*ends, nodes)
    parameters = [
        randn(nodes, features),
        randn(nodes, features),
        randn(labels, labels, features, scale=features**-0.5),
        randn(labels, labels),
    ]
    unary, table = randn(nodes, labels), randn(edges, labels, labels)
    truth = torch.randint(labels, (nodes,), generator=generator)
    truth[0] = 255
    potentials = [dc.FactoredPotential(graph, *parameters), dc.TablePotential(graph, table)]
    results = [functions.pairwise_nll(p, truth) for p in potentials]
    for potential in potentials:
        results.append(functions.pairwise_messages(potential, unary.softmax(1)).square().mean())
    results += [functions.mean_field(unary, potentials).square().sum()]
    results += [functions.pseudo_likelihood_nll(unary, potentials, truth)]
    with torch.no_grad():
        marginals = functions.mean_field(unary, potentials[:1])
    gradients = torch.autograd.grad(sum(results), [*parameters, unary, table])
    return [marginals, *results, *gradients]
