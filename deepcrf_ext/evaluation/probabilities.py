"""How far the marginals of a segmentation can be trusted: likelihood and calibration error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.evaluation.regions import none_if_nan
from deepcrf_ext.parallel.world import World

BINS = 15
"""Of equal width in 0..1, as in Guo et al."""


@dataclass(frozen=True)
class ProbabilityScores:
    """Of all valid pixels of a data set; NaN without any.

    nll: mean of -log of the marginal of the true label, in nats; a pixel counts as 87 where it
        rounds to 0 in float32.
    calibration_error: how far accuracy and confidence (the marginal of the predicted label) lie
        apart, 0..1: the mean of |accuracy - mean confidence| over bins of pixels of like
        confidence, weighted by their pixels (Guo et al., "On calibration of modern neural
        networks", ICML 2017).
    """

    nll: float
    calibration_error: float

    def as_dict(self) -> dict[str, float | None]:
        """The scores as plain JSON types, None where undefined."""
        return {name: none_if_nan(value) for name, value in vars(self).items()}


class Probabilities:
    """Accumulates `ProbabilityScores` over images."""

    def __init__(self) -> None:
        self._nll = torch.zeros(1, dtype=torch.float64, device="cpu")
        # Pixels, right ones, Σ confidence.
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device="cpu")

    def update(self, labels: Tensor, confidence: Tensor, of_truth: Tensor, truth: Tensor) -> None:
        """Adds one image.

        labels: integers [H, W], predicted. confidence: float [H, W], their marginals. of_truth:
        float [H, W], the marginals of the true labels. truth: integers [H, W], 255 = not counted.
        """
        valid = truth != IGNORE_INDEX
        likelihood = of_truth[valid].clamp(min=torch.finfo(of_truth.dtype).tiny)
        self._nll -= likelihood.log().sum(dtype=torch.float64).cpu()
        sure = confidence[valid].double()
        right = (labels[valid] == truth[valid]).double()
        bins = (sure * BINS).long().clamp(0, BINS - 1)
        for total, weights in zip(self._bins, (None, right, sure), strict=True):
            total += torch.bincount(bins, weights, minlength=BINS).cpu()

    def add(self, other: Probabilities) -> None:
        """Adds what another one has counted."""
        self._nll += other._nll
        self._bins += other._bins

    def add_up(self, world: World) -> None:
        """Adds what all processes counted, each its own images; every process then has the sum."""
        self._nll, self._bins = world.sum(self._nll), world.sum(self._bins)

    def compute(self) -> ProbabilityScores:
        """The scores of everything added so far."""
        pixels, right, sure = self._bins
        total = float(pixels.sum())
        if not total:
            return ProbabilityScores(math.nan, math.nan)
        apart = (right - sure).abs().sum()
        return ProbabilityScores(float(self._nll) / total, float(apart) / total)
