"""The pseudo-likelihood loss in plain PyTorch (arXiv:1504.01013v2, appendix)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deepcrf_ext.ops._argument_checks import check_reduction, check_unary, checked_labels
from deepcrf_ext.ops.potentials import Potential
from deepcrf_ext.reference.reduction import reduce_losses


def pseudo_likelihood_nll(
    unary: Tensor,
    potentials: Sequence[Potential],
    labels: Tensor,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-probability of every node's label given the labels of all other nodes.

    Edges to ignored nodes are dropped. A self loop (p, p) adds `V_pp(k, k)` to label k.

    Args:
        unary: energies, [N, K].
        potentials: a list or tuple of pairwise potentials on the same N nodes and K labels, in
            the dtype of `unary`; may be empty.
        labels: [N], any integer dtype, 0..K-1 or `ignore_index`.
        ignore_index: the label of nodes that drop out, with all their edges.
        reduction: "mean" over valid nodes (0 when there is none), "sum", or "none": [N] with 0
            at nodes that drop out.

    Returns:
        A scalar, or [N], in the dtype of `unary`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_unary(unary, potentials)
    check_reduction(reduction)
    num_nodes, num_labels = unary.shape
    labels, ignore_index = checked_labels(labels, num_nodes, num_labels, ignore_index, unary.device)
    known = labels != ignore_index
    labels = labels.where(known, 0)

    energies = unary
    for potential in potentials:
        energies = energies + _conditional_energies(potential, labels, known)
    losses = energies.gather(1, labels[:, None]).squeeze(1) + (-energies).logsumexp(1)
    return reduce_losses(losses, known, reduction)


def _conditional_energies(potential: Potential, labels: Tensor, known: Tensor) -> Tensor:
    """Pairwise energy [N, K] of every label of every node, the other nodes at `labels` [N]."""
    num_nodes, num_labels = potential.graph.num_nodes, potential.num_labels
    first, second = potential.graph.edge_index()
    energies = potential.energies()  # [E, K, K]
    label_of_first = labels[first][:, None, None].expand(-1, 1, num_labels)
    label_of_second = labels[second][:, None, None].expand(-1, num_labels, 1)
    to_first = energies.gather(2, label_of_second).squeeze(2).where(known[second, None], 0)
    to_second = energies.gather(1, label_of_first).squeeze(1).where(known[first, None], 0)

    loop = (first == second)[:, None]
    to_first = energies.diagonal(dim1=1, dim2=2).where(loop, to_first)
    to_second = to_second.where(~loop, 0)
    conditional = energies.new_zeros(num_nodes, num_labels)
    return conditional.index_add(0, first, to_first).index_add(0, second, to_second)
