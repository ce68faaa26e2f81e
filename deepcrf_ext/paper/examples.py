"""Scores of single images, which of them to show, and their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcrf_ext.constants import IGNORE_INDEX, Amp
from deepcrf_ext.data import SegmentationDataset
from deepcrf_ext.data.reduced import spread
from deepcrf_ext.evaluation.evaluation import evaluate
from deepcrf_ext.evaluation.prediction import predict_image
from deepcrf_ext.evaluation.regions import none_if_nan
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.pictures.labels import colour, write_picture

KINDS: dict[str, str] = {
    "gains": "Largest gains",
    "typical": "Spread over the split",
    "losses": "Failures: largest losses of IoU",
}
"""The kinds of examples, with their titles."""

CORRECTED, SPOILT = (30, 120, 220), (235, 110, 20)
"""RGB of the pixels that the second prediction corrects and spoils."""
_UNCHANGED, _BOTH_WRONG = (238, 238, 238), (190, 190, 190)


def measure(
    model: DeepCRF,
    dataset: SegmentationDataset,
    name: str,
    variant: Variant,
    amp: Amp,
    dense_crf: DenseCRFSettings,
) -> dict[str, Any]:
    """A variant's scores over a data set and on each image, as plain values.

    Keys: "scores" (of regions, outlines and probabilities), "image_iou" (mean IoU of each image,
    None for one without truth), "seconds_per_image" ("networks" and "inference").
    """
    result = evaluate(model, dataset, {name: variant}, amp, dense_crf)
    return {
        "scores": {
            **result.scores[name].as_dict(dataset.classes),
            **result.boundaries[name].as_dict(dataset.classes),
            **result.probabilities[name].as_dict(),
        },
        "image_iou": [none_if_nan(image.mean_iou) for image in result.per_image],
        "seconds_per_image": {
            "networks": result.network_seconds,
            "inference": result.variant_seconds[name],
        },
    }


def choose(
    before: Sequence[float | None], after: Sequence[float | None], count: int
) -> dict[str, list[int]]:
    """Indices of the images to show, by kind; an image is shown once.

    before, after: mean IoU of each image under two variants. Gains and losses are the images whose
    IoU rises and falls most, at most `count` of each; "typical" are others, spread over the data
    set.
    """
    change = {
        index: b - a
        for index, (a, b) in enumerate(zip(before, after, strict=True))
        if a is not None and b is not None
    }
    order = sorted(change, key=lambda index: change[index])
    losses = [index for index in order if change[index] < 0][:count]
    gains = [index for index in reversed(order) if change[index] > 0][:count]
    others = sorted(change.keys() - {*losses, *gains})
    typical = [others[place] for place in spread(len(others), count)]
    return {"gains": gains, "typical": typical, "losses": losses}


def draw(
    model: DeepCRF,
    dataset: SegmentationDataset,
    variants: Mapping[str, Variant],
    chosen: Mapping[str, Sequence[int]],
    folder: Path,
    amp: Amp,
    dense_crf: DenseCRFSettings,
) -> list[dict[str, Any]]:
    """Writes the pictures of chosen images into a folder; returns what they show.

    variants: two by name. Each entry has "kind", "index", "name" and "pictures": title -> file
    name, for the image, the truth, both predictions and their difference.
    Raises OSError for a picture that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for kind, index in ((kind, i) for kind, indices in chosen.items() for i in indices):
        sample = dataset[index]
        labels = [
            predict_image(model, sample.image, variant, amp=amp, dense_crf=dense_crf).labels
            for variant in variants.values()
        ]
        pictures = {
            "image": sample.image,
            "truth": colour(sample.labels, dataset.palette),
            **{
                name: colour(prediction, dataset.palette)
                for name, prediction in zip(variants, labels, strict=True)
            },
            "difference": difference(sample.labels, labels[0], labels[-1]),
        }
        files = {}
        for column, (title, picture) in enumerate(pictures.items()):
            suffix = "jpg" if title == "image" else "png"
            files[title] = f"{index:05d}-{column}.{suffix}"
            write_picture(folder / files[title], picture)
        entries.append({"kind": kind, "index": index, "name": sample.name, "pictures": files})
    return entries


def difference(
    truth: npt.NDArray[np.uint8], before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Where a second prediction is right and the first was wrong, and the other way round.

    All uint8 [H, W], the truth with 255 for ignored pixels. Returns uint8 [H, W, 3] RGB: CORRECTED,
    SPOILT, light grey where both are right (or the pixel is ignored), grey where both are wrong.
    """
    picture = np.full((*truth.shape, 3), _UNCHANGED, np.uint8)
    valid, right, was_right = truth != IGNORE_INDEX, after == truth, before == truth
    picture[valid & ~right & ~was_right] = _BOTH_WRONG
    picture[valid & right & ~was_right] = CORRECTED
    picture[valid & ~right & was_right] = SPOILT
    return picture
