"""Images and energies for the tests of the dense CRF."""

from __future__ import annotations

import pytest
import torch
from targets import TARGETS
from torch import Tensor

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


def scene(
    height: int,
    width: int,
    num_labels: int,
    device: torch.device | str = "cpu",
    *,
    batch: int = 1,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Noisy energies float32 [B, K, H, W] of coloured rectangles, and their image uint8."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(batch, 3, height, width)
    labels = torch.zeros(batch, height, width, dtype=torch.int64)
    for b in range(batch):
        for _ in range(6):
            top, left = (
                int(torch.randint(size, (), generator=generator)) for size in (height, width)
            )
            label = int(torch.randint(num_labels, (), generator=generator))
            colour = torch.randint(256, (3, 1, 1), generator=generator).float()
            labels[b, top:, left:] = label
            image[b, :, top:, left:] = colour
    image += 6 * torch.randn(image.shape, generator=generator)
    energies = torch.randn(batch, num_labels, height, width, generator=generator)
    energies.scatter_add_(1, labels[:, None], torch.full_like(energies[:, :1], -1.5))
    return energies.to(device), image.clamp(0, 255).to(device, torch.uint8)


def volume(
    shape: tuple[int, ...], num_channels: int, num_labels: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Noisy energies float32 [1, K, *S] of slabs along the last axis, and their image uint8
    [1, C, *S]; S of any number of axes."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(shape[-1]).mul(num_labels).div(shape[-1], rounding_mode="floor")
    labels = labels.expand(shape)
    levels = torch.randint(256, (num_channels, num_labels), generator=generator).float()
    image = levels[:, labels] + 6 * torch.randn(num_channels, *shape, generator=generator)
    energies = torch.randn(num_labels, *shape, generator=generator)
    energies.scatter_add_(0, labels[None], torch.full((1, *shape), -1.5))
    return energies[None].to(device), image.clamp(0, 255)[None].to(device, torch.uint8)
