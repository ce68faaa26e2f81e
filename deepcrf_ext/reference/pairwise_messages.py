"""Expected pairwise energies in plain PyTorch, the messages of mean field."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcrf_ext.ops._argument_checks import check_marginals, check_potential
from deepcrf_ext.ops.potentials import Potential


def pairwise_messages(potential: Potential, marginals: Tensor) -> Tensor:
    """Expected pairwise energy of every label of every node under its neighbours' marginals.

    `m[p, k] = Σ_(p,q) Σ_j V_pq(k, j) Q_q[j] + Σ_(q,p) Σ_j V_qp(j, k) Q_q[j]`: an edge sends a
    message to both of its ends, a self loop two to its node.

    Args:
        potential: the pairwise energies, K labels on a graph of N nodes.
        marginals: Q, [N, K], in the dtype of the potential; rows need not sum to 1.

    Returns:
        [N, K] in the dtype of the potential.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_potential("potential", potential)
    check_marginals(marginals, potential)
    first, second = potential.graph.edge_index()
    energies = potential.energies()  # [E, K, K]
    to_first = torch.einsum("ekj,ej->ek", energies, marginals.index_select(0, second))
    to_second = torch.einsum("ekj,ek->ej", energies, marginals.index_select(0, first))
    messages = torch.zeros_like(marginals)
    return messages.index_add(0, first, to_first).index_add(0, second, to_second)
