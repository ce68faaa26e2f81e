"""Test-time augmentation: how the networks see an image, and what becomes of their marginals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.data import shrink
from deepcrf_ext.errors import InputError


@dataclass(frozen=True)
class View:
    """images: [B, 3, h, w], as the networks see them. mirrored: left and right are swapped."""

    images: Tensor
    mirrored: bool

    def upright(self, marginals: Tensor) -> Tensor:
        """Marginals [B, K, h, w] of the images as those of images that are not mirrored."""
        return marginals.flip(-1) if self.mirrored else marginals

    def labels(self, labels: Tensor) -> Tensor:
        """Labels [H, W] of an image, of any size, as those of this view, [h, w]."""
        size = list(self.images.shape[2:])
        if size != list(labels.shape):
            planes = labels[None, None].float()
            labels = functional.interpolate(planes, size, mode="nearest-exact")[0, 0].long()
        return labels.flip(-1) if self.mirrored else labels


@dataclass(frozen=True)
class Window:
    """A part of a view, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, planes: Tensor) -> Tensor:
        """That part of [..., H, W]."""
        return planes[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Views:
    """How images are seen; each combination of scale and flip is one view.

    Args:
        scales: factors of their size.
        flip: each scale mirrored too.
        max_size: longest side, in pixels, at scale 1; larger images are shrunk.
        window: height and width of the parts that a view is seen in, one after another, in pixels;
            smaller views are seen whole.
        overlap: share of a window, at least, that it has in common with the next.
        batch_statistics: share that the statistics of the view itself have in those that batch
            normalisation takes (see `deepcrf_ext.evaluation.view_statistics`).

    Raises InputError for values that are none of these.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    max_size: int | None = None
    window: tuple[int, int] | None = None
    overlap: float = 1 / 3
    batch_statistics: float = 0.0

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(
                f"scales: got {list(self.scales)}, must be positive factors, such as "
                "[0.75,1.0,1.25]"
            )
        if self.max_size is not None and self.max_size < 1:
            raise InputError(f"max_size: got {self.max_size}, must be positive")
        if self.window is not None and min(self.window) < 1:
            raise InputError(f"window: got {list(self.window)}, must be two positive sizes")
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap: got {self.overlap}, must be at least 0 and below 1")
        if not 0 <= self.batch_statistics <= 1:
            raise InputError(f"batch_statistics: got {self.batch_statistics}, must be 0 to 1")

    def of(self, image: npt.NDArray[np.uint8], device: torch.device) -> Iterator[View]:
        """The views of an image, uint8 [H, W, 3], on a device; float32 [1, 3, h, w]."""
        seen = torch.from_numpy(np.ascontiguousarray(shrink(image, self.max_size))).to(device)
        images = seen.permute(2, 0, 1)[None].float()
        for scale in self.scales:
            size = [max(1, round(scale * side)) for side in images.shape[2:]]
            scaled = images
            if size != list(images.shape[2:]):
                scaled = functional.interpolate(
                    images, size, mode="bilinear", align_corners=False, antialias=True
                )
            yield View(scaled, False)
            if self.flip:
                yield View(scaled.flip(-1), True)

    def windows(self, view: View) -> list[Window]:
        """The parts that a view is seen in, which cover it; one where it is seen whole."""
        height, width = view.images.shape[2:]
        tall, wide = self.window or (height, width)
        tall, wide = min(tall, height), min(wide, width)
        return [
            Window(top, left, tall, wide)
            for top in _starts(height, tall, self.overlap)
            for left in _starts(width, wide, self.overlap)
        ]


ONE_VIEW = Views()
"""Images as they are."""


def _starts(length: int, part: int, overlap: float) -> list[int]:
    """Where parts begin that cover a length evenly and overlap by a share of a part at least."""
    step = max(1, int(part * (1 - overlap)))
    count = 1 + -(-(length - part) // step)
    starts: list[int] = np.linspace(0, length - part, count).round().astype(int).tolist()
    return starts


def join_windows(
    marginals: Sequence[Tensor], windows: Sequence[Window], size: tuple[int, int]
) -> Tensor:
    """Marginals of the windows of a view as those of the view, on a grid as dense as theirs.

    Each node takes the mean of the windows that it lies in, interpolated bilinearly.

    Args:
        marginals: [B, K, h, w] of each window.
        windows: which cover the view, all of one size.
        size: height and width of the view, in pixels.
    """
    if len(windows) == 1:
        return marginals[0]
    batch, classes, *grid = marginals[0].shape
    sides = (windows[0].height, windows[0].width)
    rows, columns = (
        max(1, round(nodes * whole / side))
        for nodes, whole, side in zip(grid, size, sides, strict=True)
    )
    total = marginals[0].new_zeros(batch, classes, rows, columns)
    count = total.new_zeros(rows, columns)
    centre_y = (torch.arange(rows, device=total.device) + 0.5) * size[0] / rows
    centre_x = (torch.arange(columns, device=total.device) + 0.5) * size[1] / columns
    for maps, window in zip(marginals, windows, strict=True):
        y, x = (centre_y - window.top) / window.height, (centre_x - window.left) / window.width
        inside_y, inside_x = (torch.nonzero((at >= 0) & (at < 1))[:, 0] for at in (y, x))
        places = torch.meshgrid(x[inside_x], y[inside_y], indexing="xy")
        sampled = functional.grid_sample(
            maps,
            (2 * torch.stack(places, 2) - 1).expand(batch, -1, -1, -1).to(maps.dtype),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        total[:, :, inside_y[:, None], inside_x] += sampled
        count[inside_y[:, None], inside_x] += 1
    return total / count


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
