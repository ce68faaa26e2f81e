"""The piecewise pairwise loss in plain PyTorch (arXiv:1504.01013v2, piecewise training)."""

from __future__ import annotations

from torch import Tensor

from deepcrf_ext.ops._argument_checks import check_potential, check_reduction, checked_labels
from deepcrf_ext.ops.potentials import Potential
from deepcrf_ext.reference.reduction import reduce_losses


def pairwise_nll(
    potential: Potential, labels: Tensor, ignore_index: int = 255, reduction: str = "mean"
) -> Tensor:
    """Negative log-likelihood of the labels of every edge, a softmax over its K² label pairs.

    The loss of edge (p, q) is `V_pq(y_p, y_q) + log Σ_kj exp(-V_pq(k, j))`.

    Args:
        potential: the pairwise energies, K labels on a graph of N nodes and E edges.
        labels: [N], any integer dtype, 0..K-1 or `ignore_index`.
        ignore_index: the label of nodes that drop out, with all their edges.
        reduction: "mean" over valid edges (0 when there is none), "sum", or "none": [E] with 0
            at edges that drop out.

    Returns:
        A scalar, or [E], in the dtype of the potential.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_potential("potential", potential)
    check_reduction(reduction)
    num_labels = potential.num_labels
    labels, ignore_index = checked_labels(
        labels, potential.graph.num_nodes, num_labels, ignore_index, potential.device
    )
    first, second = potential.graph.edge_index()
    known = labels != ignore_index
    valid = known[first] & known[second]
    pair = (labels[first] * num_labels + labels[second]).where(valid, 0)

    energies = potential.energies().flatten(1)  # [E, K * K]
    losses = energies.gather(1, pair[:, None]).squeeze(1) + (-energies).logsumexp(1)
    return reduce_losses(losses, valid, reduction)
