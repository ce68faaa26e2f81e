"""What the operators must give, by enumeration and plain loops in float64 NumPy.

Nothing here is shared with the package: energies of edges are formed from the raw tensors, one edge
at a time, and probabilities by summing over all K^N labellings.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepcrf_ext.ops.potentials import FactoredPotential, Potential

Array: TypeAlias = NDArray[np.float64]
Edge: TypeAlias = tuple[int, int, Array]  # (p, q, V_pq [K, K])


def array(tensor: Tensor) -> Array:
    """The tensor as float64."""
    return tensor.detach().double().cpu().numpy()


def edges(potential: Potential) -> list[Edge]:
    """Every edge with its energies, in the order of the graph."""
    ends = potential.graph.edge_index().tolist()
    if not isinstance(potential, FactoredPotential):
        return list(zip(*ends, array(potential.table), strict=True))
    source, target = array(potential.source), array(potential.target)
    weight, bias = array(potential.weight), array(potential.bias)
    return [
        (p, q, np.einsum("kjd,d->kj", weight, np.maximum(source[p] + target[q], 0)) + bias)
        for p, q in zip(*ends, strict=True)
    ]


def total_energy(unary: Array, all_edges: Sequence[Edge], labelling: Sequence[int]) -> float:
    """E(y) of one labelling of all nodes."""
    energy = sum(float(unary[p, label]) for p, label in enumerate(labelling))
    return energy + sum(float(table[labelling[p], labelling[q]]) for p, q, table in all_edges)


def joint_probabilities(unary: Array, all_edges: Sequence[Edge]) -> Array:
    """P(y | x) of every labelling, [K, ..., K] with one axis a node, by the exact partition sum."""
    num_nodes, num_labels = unary.shape
    energies = np.empty((num_labels,) * num_nodes)
    for labelling in itertools.product(range(num_labels), repeat=num_nodes):
        energies[labelling] = total_energy(unary, all_edges, labelling)
    weights = np.exp(energies.min() - energies)
    return weights / weights.sum()


def negative_log_softmax(energies: Array, label: int | tuple[int, ...]) -> float:
    """-log of the probability of one entry, P ∝ exp(-energy) over all entries."""
    lowest = energies.min()
    return float(energies[label] - lowest + np.log(np.exp(lowest - energies).sum()))


def softmax(energies: Array) -> Array:
    """exp(-energy), each row [K] normalised."""
    weights = np.exp(energies.min(1, keepdims=True) - energies)
    return weights / weights.sum(1, keepdims=True)


def pairwise_nll(edge_list: Sequence[Edge], labels: Sequence[int], ignore_index: int) -> Array:
    """The loss of every edge, [E], 0 where an end is ignored."""
    return np.array(
        [
            0.0
            if ignore_index in (labels[p], labels[q])
            else negative_log_softmax(table, (labels[p], labels[q]))
            for p, q, table in edge_list
        ],
        dtype=np.float64,
    )


def pairwise_messages(edge_list: Sequence[Edge], marginals: Array) -> Array:
    """Expected energy of every label of every node, [N, K], edge by edge and label by label."""
    messages = np.zeros_like(marginals)
    for p, q, table in edge_list:
        for k, j in np.ndindex(table.shape):
            messages[p, k] += table[k, j] * marginals[q, j]
            messages[q, j] += table[k, j] * marginals[p, k]
    return messages


def mean_field(unary: Array, edge_lists: Sequence[Sequence[Edge]], iterations: int) -> Array:
    """Marginals [N, K] after parallel updates."""
    marginals = softmax(unary)
    for _ in range(iterations):
        messages = [pairwise_messages(edge_list, marginals) for edge_list in edge_lists]
        marginals = softmax(sum(messages, unary))
    return marginals


def pseudo_likelihood_nll(
    unary: Array, edge_lists: Sequence[Sequence[Edge]], labels: Sequence[int], ignore_index: int
) -> Array:
    """-log P(y_p | all other labels) of every node, [N], 0 at ignored nodes.

    The total energy of the graph without its ignored nodes is formed anew for every label.
    """
    kept = [p for p, label in enumerate(labels) if label != ignore_index]
    position = {p: i for i, p in enumerate(kept)}
    kept_edges = [
        (position[p], position[q], table)
        for edge_list in edge_lists
        for p, q, table in edge_list
        if p in position and q in position
    ]
    losses = np.zeros(len(labels))
    for p in kept:
        labelling = [labels[other] for other in kept]
        energies = np.empty(unary.shape[1])
        for label in range(unary.shape[1]):
            labelling[position[p]] = label
            energies[label] = total_energy(unary[kept], kept_edges, labelling)
        losses[p] = negative_log_softmax(energies, labels[p])
    return losses


def reduced(losses: Array, valid: Sequence[bool], reduction: str) -> Array:
    """The loss under a reduction, the mean over the valid entries only."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return np.asarray(total if reduction == "sum" else total / max(1, sum(valid)))
