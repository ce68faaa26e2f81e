"""The reductions of a loss that is defined at some edges or nodes only."""

from __future__ import annotations

import torch
from torch import Tensor


def reduce_losses(losses: Tensor, valid: Tensor, reduction: str) -> Tensor:
    """Reduce `losses` [M], of which those not `valid` [M] (bool) count as absent.

    `"none"` gives [M] with 0 where not valid, `"sum"` a scalar, `"mean"` the mean over the
    valid ones, 0 when there is none.
    """
    losses = losses.where(valid, 0)
    if reduction == "none":
        return losses
    # A sum of float16 may be larger than it holds where the mean is not.
    total = losses.sum(dtype=torch.promote_types(losses.dtype, torch.float32))
    if reduction == "mean":
        total = total / valid.sum().clamp(min=1)
    return total.to(losses.dtype)
