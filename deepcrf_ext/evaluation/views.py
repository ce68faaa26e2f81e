"""Test-time augmentation: images seen in several sizes and mirrored, their marginals averaged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.errors import InputError


@dataclass(frozen=True)
class View:
    """images: [B, 3, h, w], as the networks see them. mirrored: left and right are swapped."""

    images: Tensor
    mirrored: bool

    def upright(self, marginals: Tensor) -> Tensor:
        """Marginals [B, K, h, w] of the images as those of images that are not mirrored."""
        return marginals.flip(-1) if self.mirrored else marginals


@dataclass(frozen=True)
class Views:
    """How images are seen; each combination is one view.

    Args:
        scales: factors of their size.
        flip: each scale mirrored too.

    Raises InputError where there is no scale, or one that is not positive.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"scales: got {list(self.scales)}, must be positive factors")

    def of(self, images: Tensor) -> Iterator[View]:
        """The views of images [B, 3, H, W]; those of another size are float32."""
        for scale in self.scales:
            size = [max(1, round(scale * side)) for side in images.shape[2:]]
            seen = images
            if size != list(images.shape[2:]):
                seen = functional.interpolate(
                    images.float(), size, mode="bilinear", align_corners=False, antialias=True
                )
            yield View(seen, False)
            if self.flip:
                yield View(seen.flip(-1), True)


ONE_VIEW = Views()
"""Images as they are."""


def average_views(marginals: Sequence[Tensor]) -> Tensor:
    """The mean of marginals [B, K, h, w] on grids of several sizes, grown to the largest grid."""
    if len(marginals) == 1:
        return marginals[0]
    largest = max((one.shape[2:] for one in marginals), key=lambda size: size[0] * size[1])
    grown = [
        one
        if one.shape[2:] == largest
        else functional.interpolate(one, largest, mode="bilinear", align_corners=False)
        for one in marginals
    ]
    return torch.stack(grown).mean(0)
