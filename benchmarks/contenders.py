"""What a user would write in plain PyTorch instead of this package's operators.

`eager` materialises the energies of all edges, once; `chunked` never holds more than `CHUNK` edges
at a time and pays by computing them again. `torch.compile` is applied to the eager one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from deepcrf_ext import FactoredPotential

CHUNK = 8192


def edge_energies(
    source: Tensor, target: Tensor, weight: Tensor, bias: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Energies [E, K·K] of the edges first[e] -> second[e]."""
    hidden = (source[first] + target[second]).relu()
    return F.linear(hidden, weight.flatten(0, 1), bias.flatten())


def add_messages(
    energies: Tensor, table: Tensor, marginals: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """energies [N, K] plus the messages of edges with table [E, K, K], both ways."""
    to_first = torch.bmm(table, marginals[second].unsqueeze(2)).squeeze(2)
    to_second = torch.bmm(marginals[first].unsqueeze(1), table).squeeze(1)
    return energies.index_add(0, first, to_first).index_add(0, second, to_second)


def mean_field_eager(unary: Tensor, potential: FactoredPotential, iterations: int) -> Tensor:
    """Mean field over the materialised tables."""
    first, second = potential.graph.edge_index()
    table = edge_energies(
        potential.source, potential.target, potential.weight, potential.bias, first, second
    ).unflatten(1, potential.bias.shape)
    marginals = (-unary).softmax(1)
    for _ in range(iterations):
        marginals = (-add_messages(unary, table, marginals, first, second)).softmax(1)
    return marginals


def _chunk_messages(
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    marginals: Tensor,
    first: Tensor,
    second: Tensor,
) -> Tensor:
    table = edge_energies(source, target, weight, bias, first, second).unflatten(1, bias.shape)
    return add_messages(torch.zeros_like(marginals), table, marginals, first, second)


def mean_field_chunked(unary: Tensor, potential: FactoredPotential, iterations: int) -> Tensor:
    """Mean field that computes the tables anew, `CHUNK` edges at a time, and again in the backward
    pass."""
    first, second = potential.graph.edge_index()
    parameters = (potential.source, potential.target, potential.weight, potential.bias)
    marginals = (-unary).softmax(1)
    for _ in range(iterations):
        energies = unary
        for p, q in zip(first.split(CHUNK), second.split(CHUNK), strict=True):
            energies = energies + checkpoint(
                _chunk_messages, *parameters, marginals, p, q, use_reentrant=False
            )
        marginals = (-energies).softmax(1)
    return marginals


def _chunk_loss(
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    first: Tensor,
    second: Tensor,
    pair: Tensor,
) -> Tensor:
    energies = edge_energies(source, target, weight, bias, first, second)
    return F.cross_entropy(-energies.float(), pair, reduction="sum")


def loss_eager(potential: FactoredPotential, labels: Tensor) -> Tensor:
    """Mean piecewise loss over the materialised energies."""
    first, second = potential.graph.edge_index()
    pair = labels[first] * potential.num_labels + labels[second]
    parameters = (potential.source, potential.target, potential.weight, potential.bias)
    return _chunk_loss(*parameters, first, second, pair) / first.numel()


def loss_chunked(potential: FactoredPotential, labels: Tensor) -> Tensor:
    """The same, `CHUNK` edges at a time, recomputed in the backward pass."""
    first, second = potential.graph.edge_index()
    pair = labels[first] * potential.num_labels + labels[second]
    parameters = (potential.source, potential.target, potential.weight, potential.bias)
    total = potential.source.new_zeros(())
    chunks = zip(first.split(CHUNK), second.split(CHUNK), pair.split(CHUNK), strict=True)
    for p, q, y in chunks:
        total = total + checkpoint(_chunk_loss, *parameters, p, q, y, use_reentrant=False)
    return total / first.numel()
