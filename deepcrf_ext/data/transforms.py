"""From samples to tensors: random scale, crop and flip for training, plain conversion else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data.base import Sample
from deepcrf_ext.libraries import cv2

_LUMA = (0.299, 0.587, 0.114)  # of R, G and B in a grey, ITU-R BT.601
# The mean colour of ImageNet, RGB 0..255, rounded; about zero once a model normalises its input.
PAD_COLOUR = (124, 116, 104)


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, crop with padding, flip and colours, in this order.

    All chance comes from the generator of the call, so a generator seeded with (seed, epoch, index)
    makes a run repeatable in any order of loading.

    Args:
        crop: (height, width) of the result, or None for the whole scaled image. Where the
            scaled image is smaller, it is placed at random and surrounded by the mean colour and
            the ignored label 255.
        flip: mirror left and right with probability 1/2.
        scale_range: (lowest, highest) factor of a random uniform scale, or None for no scaling.
        jitter: brightness, contrast and saturation each change by a random factor 1 - jitter to
            1 + jitter.
        hue: hue turns by a random angle of up to this share of the circle, either way.

    Raises:
        ValueError: a crop side or a scale is not positive, or the scale range is reversed.
    """

    crop: tuple[int, int] | None
    flip: bool
    scale_range: tuple[float, float] | None
    jitter: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop: got {self.crop}, must be (height, width), both at least 1")
        if self.scale_range is not None and not (
            0 < self.scale_range[0] <= self.scale_range[1] < math.inf
        ):
            raise ValueError(
                f"scale_range: got {self.scale_range}, must be (lowest, highest) with "
                "0 < lowest <= highest, finite"
            )

    def __call__(
        self, sample: Sample, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image, float32 [3, h, w] RGB 0..255, and the labels, int64 [h, w]."""
        image, labels = sample.image, sample.labels
        if self.scale_range is not None:
            image, labels = _resize(image, labels, generator.uniform(*self.scale_range))
        if self.crop is not None:
            image, labels = _crop(image, labels, self.crop, generator)
        if self.flip and generator.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.jitter:
            image = _jitter(image, *generator.uniform(1 - self.jitter, 1 + self.jitter, 3))
        if self.hue:
            image = _turn_hue(image, generator.uniform(-self.hue, self.hue))
        return _tensors(image, labels)


def to_tensors(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole sample as an image, float32 [3, H, W] RGB 0..255, and labels, int64 [H, W]."""
    return _tensors(sample.image, sample.labels)


def _tensors(image: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes), torch.from_numpy(labels.astype(np.int64))


def _resize(image: np.ndarray, labels: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    height, width = (max(1, round(side * scale)) for side in labels.shape)
    size = (width, height)
    # NEAREST_EXACT samples at pixel centres as LINEAR does; NEAREST would shift the labels.
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def _jitter(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """uint8 [H, W, 3] with its colours times brightness, then away from the mean grey of the image
    by contrast, then each away from its own grey by saturation."""
    colours = brightness * image.astype(np.float32)
    grey = colours @ np.array(_LUMA, np.float32)
    colours = grey.mean() + contrast * (colours - grey.mean())
    grey = (colours @ np.array(_LUMA, np.float32))[..., None]
    colours = grey + saturation * (colours - grey)
    return np.clip(np.round(colours), 0, 255).astype(np.uint8)


def _turn_hue(image: np.ndarray, share: float) -> np.ndarray:
    """uint8 [H, W, 3] with its hues turned by a share of the circle."""
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * share) % 360
    return np.round(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).astype(np.uint8)


def _crop(
    image: np.ndarray, labels: np.ndarray, crop: tuple[int, int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    source, target = [], []  # slices along rows and columns
    for side, wanted in zip(labels.shape, crop, strict=True):
        kept = min(side, wanted)
        offset = int(generator.integers(abs(side - wanted) + 1))
        start_source, start_target = (offset, 0) if side > wanted else (0, offset)
        source.append(slice(start_source, start_source + kept))
        target.append(slice(start_target, start_target + kept))
    padded_image = np.empty((*crop, 3), np.uint8)
    padded_image[:] = PAD_COLOUR
    padded_labels = np.full(crop, IGNORE_INDEX, np.uint8)
    padded_image[tuple(target)] = image[tuple(source)]
    padded_labels[tuple(target)] = labels[tuple(source)]
    return padded_image, padded_labels
