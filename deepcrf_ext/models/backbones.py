"""Backbones handed in: modules from images to one map of features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_TRIAL_SIZE = 64


def out_channels(backbone: nn.Module) -> int:
    """C of a backbone's features: its attribute ``out_channels``, else that of a trial run.

    Raises:
        TypeError: it is no module, or does not return a tensor.
        ValueError: what it returns is not [B, C, h, w].
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone: got {type(backbone).__name__}, must be a torch.nn.Module")
    known = getattr(backbone, "out_channels", None)
    if isinstance(known, int):
        return known
    return _trial(backbone, _TRIAL_SIZE, _TRIAL_SIZE).shape[1]


def map_size(backbone: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a backbone's features of an image of this size, by a trial run."""
    return tuple(_trial(backbone, height, width).shape[2:])  # type: ignore[return-value]


def check_map(features: Tensor) -> Tensor:
    """What a backbone returned, checked to be one map of features [B, C, h, w]."""
    if not isinstance(features, Tensor):
        raise TypeError(f"backbone: returned {type(features).__name__}, must return a tensor")
    if features.dim() != 4:
        raise ValueError(
            f"backbone: returned shape {list(features.shape)}, must return [B, C, h, w]"
        )
    return features


@torch.no_grad()
def _trial(backbone: nn.Module, height: int, width: int) -> Tensor:
    """Features of a grey image, with no trace left in the backbone."""
    with evaluating(backbone):
        return check_map(backbone(grey_image(backbone, height, width)))


def grey_image(network: nn.Module, height: int, width: int) -> Tensor:
    """Zeros [1, 3, H, W] as a network takes images: of its dtype, on its device."""
    tensors = [*network.parameters(), *network.buffers()]
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    return first.new_zeros(1, 3, height, width)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, and each of its parts as it was afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
