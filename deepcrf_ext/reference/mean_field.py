"""Mean-field inference in plain PyTorch (arXiv:1504.01013v2, prediction)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deepcrf_ext.ops._argument_checks import check_unary
from deepcrf_ext.ops._number_checks import checked_iterations
from deepcrf_ext.ops.potentials import Potential
from deepcrf_ext.reference.pairwise_messages import pairwise_messages


def mean_field(unary: Tensor, potentials: Sequence[Potential], iterations: int = 2) -> Tensor:
    """Approximate marginals by parallel mean-field updates.

    `Q⁰ = softmax(-unary)`, then `Q ← softmax(-unary - Σ pairwise_messages(potential, Q))`.

    Args:
        unary: energies, [N, K].
        potentials: a list or tuple of pairwise potentials on the same N nodes and K labels, in
            the dtype of `unary`; may be empty.
        iterations: the number of updates, >= 0.

    Returns:
        [N, K] in the dtype of `unary`; rows sum to 1.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_unary(unary, potentials)
    iterations = checked_iterations(iterations)
    marginals = (-unary).softmax(1)
    for _ in range(iterations):
        energies = unary
        for potential in potentials:
            energies = energies + pairwise_messages(potential, marginals)
        marginals = (-energies).softmax(1)
    return marginals
