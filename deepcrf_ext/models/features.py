"""Multi-scale features (paper, section 4.1): one network over an image pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcrf_ext.models.vgg import VGGPart

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class ImagePyramid(nn.Module):
    """Normalises images and resizes them bilinearly to every scale.

    Input: RGB [B, 3, H, W], 0..255. Output: for each scale a channels-last float32
    [B, 3, max(1, round(scale * H)), max(1, round(scale * W))].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images has shape {tuple(images.shape)}; it must be [B, 3, H, W]")
        height, width = images.shape[2:]
        normal = ((images.float() - self.mean) / self.std).contiguous(
            memory_format=torch.channels_last
        )
        return [
            functional.interpolate(normal, size, mode="bilinear", align_corners=False)
            for size in self.sizes(height, width)
        ]

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width at each scale of an image of this size."""
        return [(max(1, round(s * height)), max(1, round(s * width))) for s in self.scales]


def multiscale_features(part: VGGPart, pyramid: Sequence[Tensor]) -> Tensor:
    """Runs one network over all scales; smaller maps grow to the largest by nearest neighbour.

    Returns [B, h, w, len(pyramid) * C], the largest scale first, on the grid of its map.
    """
    maps = [part(images) for images in pyramid]
    size = maps[0].shape[2:]
    grown = [maps[0], *(functional.interpolate(m, size, mode="nearest") for m in maps[1:])]
    return torch.cat([m.permute(0, 2, 3, 1) for m in grown], dim=3)
