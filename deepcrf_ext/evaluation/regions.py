"""Segmentation scores of a whole data set, from one confusion matrix accumulated over its images.

Scores follow the PASCAL VOC definition: pixels are counted over all images first, then divided,
so that a large image weighs more than a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.parallel.world import World


@dataclass(frozen=True)
class Scores:
    """Scores from a confusion matrix; every score is a fraction in 0..1, NaN where undefined.

    confusion: int64 [K, K], pixels of true class (row) predicted as class (column).
    iou: float64 [K], TP / (TP + FP + FN) per class; NaN for a class in neither of the two.
    accuracy: float64 [K], TP / (TP + FN) per class (recall); NaN for a class absent from the truth.
    mean_iou: mean of `iou` over the classes present in truth or prediction: a class that is only
        predicted counts as 0, a class that never occurs does not count.
    pixel_accuracy: correct pixels / valid pixels.
    class_accuracy: mean of `accuracy` over the classes present in the truth.
    """

    confusion: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    mean_iou: float
    pixel_accuracy: float
    class_accuracy: float

    @classmethod
    def from_confusion(cls, confusion: npt.NDArray[np.int64]) -> Scores:
        """Scores of a confusion matrix, integers [K, K], truth in rows, prediction in columns."""
        if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
            raise ValueError(f"confusion: got shape {confusion.shape}, must be square [K, K]")
        correct = np.diag(confusion).astype(np.float64)
        truth = confusion.sum(axis=1).astype(np.float64)
        predicted = confusion.sum(axis=0)
        iou = _ratio(correct, truth + predicted - correct)
        accuracy = _ratio(correct, truth)
        total = confusion.sum()
        return cls(
            confusion=confusion,
            iou=iou,
            accuracy=accuracy,
            mean_iou=mean_defined(iou),
            pixel_accuracy=float(correct.sum() / total) if total else float("nan"),
            class_accuracy=mean_defined(accuracy),
        )

    def as_dict(self, classes: Sequence[str]) -> dict[str, object]:
        """The scores as plain JSON types, None where undefined. `classes` names the K rows."""
        if len(classes) != len(self.iou):
            raise ValueError(f"classes: got {len(classes)} names, must be {len(self.iou)}")
        return {
            "mean_iou": none_if_nan(self.mean_iou),
            "pixel_accuracy": none_if_nan(self.pixel_accuracy),
            "class_accuracy": none_if_nan(self.class_accuracy),
            "iou": {name: none_if_nan(v) for name, v in zip(classes, self.iou, strict=True)},
            "accuracy": {
                name: none_if_nan(v) for name, v in zip(classes, self.accuracy, strict=True)
            },
            "confusion": self.confusion.tolist(),
        }


class SegmentationMetrics:
    """Accumulates a confusion matrix over images, ignoring pixels labelled `IGNORE_INDEX` (255)."""

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes}, must be at least 1")
        self.num_classes = num_classes
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device="cpu")

    def update(self, prediction: torch.Tensor, truth: torch.Tensor) -> None:
        """Adds one image or batch.

        prediction: integer tensor of class indices 0..K-1, any shape, for example [H, W].
        truth: integer tensor of the same shape, class indices 0..K-1 or 255 (not counted).
        Raises ValueError for another shape or a label out of range.
        """
        if prediction.shape != truth.shape:
            raise ValueError(
                f"prediction: got shape {tuple(prediction.shape)}, "
                f"must be that of truth, {tuple(truth.shape)}"
            )
        prediction, truth = prediction.cpu().long(), truth.cpu().long()
        self._check_range("prediction", prediction)
        known = truth != IGNORE_INDEX
        self._check_range("truth", truth[known])
        pairs = self.num_classes * truth[known] + prediction[known]
        counts = torch.bincount(pairs, minlength=self.num_classes**2)
        self._confusion += counts.view_as(self._confusion)

    def add(self, other: SegmentationMetrics) -> None:
        """Adds what another one of as many classes has counted."""
        self._confusion += other._confusion

    def add_up(self, world: World) -> None:
        """Adds what all processes counted, each its own images; every process then has the sum."""
        self._confusion = world.sum(self._confusion)

    def compute(self) -> Scores:
        """The scores of everything added so far."""
        return Scores.from_confusion(self._confusion.numpy().copy())

    def _check_range(self, name: str, labels: torch.Tensor) -> None:
        if labels.numel() == 0:
            return
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{name}: got labels {low}..{high}, "
                f"must be 0..{self.num_classes - 1} (truth may also be {IGNORE_INDEX})"
            )


def _ratio(
    numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Elementwise quotient, NaN where the denominator is 0."""
    undefined = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def mean_defined(values: npt.NDArray[np.float64]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def none_if_nan(value: float) -> float | None:
    """The value as JSON has it, which knows no NaN."""
    return None if np.isnan(value) else float(value)
