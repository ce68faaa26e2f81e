"""A picture of what a training has come to."""

from __future__ import annotations

from pathlib import Path

from deepcrf_ext.constants import Amp
from deepcrf_ext.data import SegmentationDataset
from deepcrf_ext.data.reduced import spread
from deepcrf_ext.evaluation.evaluation import before_and_after
from deepcrf_ext.evaluation.prediction import predict_image
from deepcrf_ext.evaluation.views import Views
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.pictures.labels import colour, picture_grid

IMAGES = 6  # at most, spread over the data set


def write_picture_grid(
    model: DeepCRF,
    dataset: SegmentationDataset,
    amp: Amp,
    path: Path,
    views: Views,
) -> None:
    """Image, truth and the variants of `before_and_after`, for some images of a data set."""
    model.eval()
    variants = before_and_after(model)
    pictures = []
    for index in spread(len(dataset), IMAGES):
        sample = dataset[index]
        predictions = [
            predict_image(model, sample.image, variant, amp=amp, views=views).labels
            for variant in variants.values()
        ]
        coloured = [colour(labels, dataset.palette) for labels in (sample.labels, *predictions)]
        pictures.append([sample.image, *coloured])
    titles = ["image", "truth", *variants]
    picture_grid(pictures, titles, path, dataset.classes, dataset.palette)
