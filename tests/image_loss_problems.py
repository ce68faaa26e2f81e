"""For tests of the losses of images: problems, and what every such loss must do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accuracy import assert_close
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


def assert_compiles_once(
    loss: Callable[..., Tensor], problems: Iterable[tuple[Tensor, Tensor, Tensor | None]]
) -> None:
    """The loss compiles whole, for all of these sizes at once, to the same value and gradient."""
    torch.compiler.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for index, (probabilities, image, mask) in enumerate(problems):
        with torch.compiler.set_stance("default" if index == 0 else "fail_on_recompile"):
            result = value_and_gradient(compiled, probabilities, image, mask=mask)
        wanted = value_and_gradient(loss, probabilities, image, mask=mask)
        for name, value in wanted.items():
            assert_close(result[name], value)
