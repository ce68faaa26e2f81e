"""The reductions of a loss that is defined at some edges or nodes only."""

from __future__ import annotations

from torch import Tensor


def reduce_losses(losses: Tensor, valid: Tensor, reduction: str) -> Tensor:
    """Reduce `losses` [M], of which those not `valid` [M] (bool) count as absent.

    `"none"` gives [M] with 0 where not valid, `"sum"` a scalar, `"mean"` the mean over the
    valid ones, 0 when there is none.
    """
    losses = losses.where(valid, 0)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / valid.sum().clamp(min=1)
