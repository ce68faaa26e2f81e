"""How well the outlines of a segmentation lie: the boundary F1 score.

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC
2013. Mean IoU counts the inside of regions; this score sees only their outlines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.evaluation.regions import mean_defined, none_if_nan
from deepcrf_ext.libraries import cv2
from deepcrf_ext.parallel.world import World

TOLERANCE = 0.0075
"""Of the image's diagonal, as in Csurka et al."""


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary F1 of a data set, fractions in 0..1, NaN where undefined.

    f1: float64 [K], of each class the mean of its F1 over the images whose truth has an outline of
        the class; NaN if none has.
    mean_f1: the mean of `f1` over the classes where it is defined. (Csurka et al. average over the
        classes of an image first, then over images.)
    """

    f1: npt.NDArray[np.float64]
    mean_f1: float

    def as_dict(self, classes: Sequence[str]) -> dict[str, object]:
        """The scores as plain JSON types, None where undefined. `classes` names the K rows."""
        return {
            "mean_boundary_f1": none_if_nan(self.mean_f1),
            "boundary_f1": dict(zip(classes, map(none_if_nan, self.f1), strict=True)),
        }


class BoundaryF1:
    """Accumulates the boundary F1 of each class over images.

    The outline of a class is its pixels with a 4-neighbour of another label; the border of the
    image is none. Where the truth is 255 (ignored), the prediction is ignored as well: an ignored
    region bounds the classes around it in both. Precision is the share of predicted outline pixels
    at most `tolerance` from a true one of the class, recall the share of true ones as near to a
    predicted one, F1 their harmonic mean: 0 where the prediction has no outline of the class.

    Args:
        num_classes: K.
        tolerance: Euclidean distance, as a fraction of the diagonal of each image in pixels.
    """

    def __init__(self, num_classes: int, tolerance: float = TOLERANCE) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes}, must be at least 1")
        if not tolerance >= 0:
            raise ValueError(f"tolerance: got {tolerance}, must be at least 0")
        self.num_classes = num_classes
        self.tolerance = tolerance
        self._total = np.zeros(num_classes)
        self._images = np.zeros(num_classes, np.int64)

    def update(self, prediction: npt.ArrayLike, truth: npt.ArrayLike) -> None:
        """Adds one image.

        prediction: integers [H, W], class indices 0..K-1.
        truth: integers [H, W], class indices 0..K-1 or 255 (ignored).
        Raises ValueError for another shape.
        """
        predicted, true = np.array(prediction), np.asarray(truth)
        if true.ndim != 2 or predicted.shape != true.shape:
            raise ValueError(
                f"prediction: got shape {predicted.shape} and a truth of {true.shape}, "
                "must both be the same [H, W]"
            )
        predicted[true == IGNORE_INDEX] = IGNORE_INDEX
        limit = self.tolerance * math.hypot(*true.shape)
        outlines = outline(predicted), outline(true)
        for label in np.unique(true[outlines[1]]):
            if label == IGNORE_INDEX:
                continue
            ours, theirs = (
                edge & (labels == label)
                for edge, labels in zip(outlines, (predicted, true), strict=True)
            )
            self._total[label] += _f1(ours, theirs, limit)
            self._images[label] += 1

    def add_up(self, world: World) -> None:
        """Adds what all processes counted, each its own images; every process then has the sum."""
        self._total = world.sum(torch.from_numpy(self._total)).numpy()
        self._images = world.sum(torch.from_numpy(self._images)).numpy()

    def compute(self) -> BoundaryScores:
        """The scores of everything added so far."""
        f1 = np.full(self.num_classes, np.nan)
        np.divide(self._total, self._images, out=f1, where=self._images > 0)
        return BoundaryScores(f1, mean_defined(f1))


def outline(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """[H, W], true where a 4-neighbour of a pixel has another label."""
    edge = np.zeros(labels.shape, np.bool_)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _f1(ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_], limit: float) -> float:
    """F1 of two outlines [H, W], the second of which is not empty."""
    if not ours.any():
        return 0.0
    precision, recall = _share_near(ours, theirs, limit), _share_near(theirs, ours, limit)
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _share_near(
    points: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_], limit: float
) -> float:
    """The share of `points` at most `limit` from one of `others`."""
    distance = cv2.distanceTransform((~others).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((distance[points] <= limit + 1e-4).mean())
