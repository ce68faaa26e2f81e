"""Measuring a model while it trains: the unary alone against the whole CRF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.data import SegmentationDataset, to_tensors
from deepcrf_ext.device import autocast
from deepcrf_ext.metrics import Scores, SegmentationMetrics
from deepcrf_ext.models import DeepCRF, Row
from deepcrf_ext.visualise import colour, picture_grid


def validation_rows(model: DeepCRF) -> dict[str, Row]:
    """What is compared: "unary" and "crf", as far as the model has their potentials."""
    full = model.full_row()
    rows = {} if full.unary is None else {"unary": Row(full.unary)}
    return {**rows, "crf": full} if full.relations else rows


@torch.no_grad()
def predict_rows(
    model: DeepCRF, image: Tensor, rows: dict[str, Row], amp: bool | None
) -> dict[str, Tensor]:
    """Label maps, int64 [H, W] on the CPU, of an image [3, H, W] by row; networks run once."""
    device = model.pyramid.mean.device
    names = dict.fromkeys(name for row in rows.values() for name in row.potentials)
    with autocast(device, amp):
        energies = model.energies(image[None].to(device), names)
    predictions = {}
    for title, row in rows.items():
        nodes = model.marginals(energies, row)
        size = tuple(image.shape[1:])
        pixels = functional.interpolate(nodes, size, mode="bilinear", align_corners=False)
        predictions[title] = pixels[0].argmax(0).cpu()
    return predictions


def validate(
    model: DeepCRF,
    dataset: SegmentationDataset,
    amp: bool | None,
    trained: Sequence[str],
    stop: Callable[[], bool],
) -> dict[str, Scores] | None:
    """Scores of `validation_rows` over a data set at full size; None when `stop` says so.

    Rows with a potential that is not among `trained` are left out. Leaves the model in eval mode.
    """
    model.eval()
    rows = {
        title: row
        for title, row in validation_rows(model).items()
        if set(row.potentials) <= set(trained)
    }
    metrics = {title: SegmentationMetrics(dataset.num_classes) for title in rows}
    for index in range(len(dataset)):
        if stop():
            return None
        image, labels = to_tensors(dataset[index])
        for title, prediction in predict_rows(model, image, rows, amp).items():
            metrics[title].update(prediction, labels)
    return {title: metric.compute() for title, metric in metrics.items()}


def write_picture_grid(
    model: DeepCRF, dataset: SegmentationDataset, amp: bool | None, path: Path, count: int = 6
) -> None:
    """Image / truth / unary only / with pairwise, for images spread over a data set."""
    model.eval()
    rows = validation_rows(model)
    titles = {"unary": "unary only", "crf": "with pairwise"}
    pictures = []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int):
        sample = dataset[int(index)]
        predictions = predict_rows(model, to_tensors(sample)[0], rows, amp)
        maps = [sample.labels, *(labels.numpy() for labels in predictions.values())]
        pictures.append([sample.image, *(colour(labels, dataset.palette) for labels in maps)])
    columns = ["image", "truth", *(titles[title] for title in rows)]
    picture_grid(pictures, columns, path, dataset.classes, dataset.palette)
