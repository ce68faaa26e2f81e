"""For tests of the gated CRF loss: problems, and a loss with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def segmentation(
    batch: int,
    num_labels: int,
    channels: int,
    axes: Sequence[int],
    masked: str = "none",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Probabilities float64 [B, K, *S], an image uint8 [B, C, *S] and a mask [B, *S]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, num_labels, *axes, generator=generator, dtype=torch.float64)
    image = torch.randint(60, (batch, channels, *axes), generator=generator, dtype=torch.uint8)
    weights = torch.rand(batch, *axes, generator=generator)
    masks = {
        "none": None,
        "bool": weights > 0.4,
        "weights": weights,
        "nothing": torch.zeros_like(weights, dtype=torch.bool),
    }
    return logits.softmax(1), image, masks[masked]


def value_and_gradient(
    function: Any, probabilities: Tensor, *args: Any, **kwargs: Any
) -> dict[str, Tensor]:
    leaf = probabilities.detach().requires_grad_()
    value = function(leaf, *args, **kwargs)
    (gradient,) = torch.autograd.grad(value, leaf)
    return {"value": value.detach(), "gradient": gradient}
