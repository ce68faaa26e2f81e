"""Measuring a model while it trains: the unary alone against the whole CRF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data import SegmentationDataset, read_ahead, to_tensors
from deepcrf_ext.evaluation.regions import SegmentationMetrics
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.parallel.device import autocast
from deepcrf_ext.parallel.world import World
from deepcrf_ext.pictures.labels import colour, picture_grid


def validation_rows(model: DeepCRF) -> dict[str, Variant]:
    """What is compared: "unary" and "crf", as far as the model has their potentials."""
    crf = model.default_variant()
    rows = {} if crf.unary is None else {"unary": Variant(crf.unary)}
    return {**rows, "crf": crf} if crf.relations else rows


@torch.no_grad()
def predict_rows(
    model: DeepCRF, image: Tensor, rows: dict[str, Variant], amp: bool | None
) -> dict[str, Tensor]:
    """Marginals, float32 [K, H, W], of an image [3, H, W] by row; networks run once."""
    device = model.device
    names = dict.fromkeys(name for row in rows.values() for name in row.potentials)
    with autocast(device, amp):
        energies = model.energies(image[None].to(device), names)
    predictions = {}
    for title, row in rows.items():
        nodes = model.marginals(energies, row)
        size = tuple(image.shape[1:])
        pixels = functional.interpolate(nodes, size, mode="bilinear", align_corners=False)
        predictions[title] = pixels[0]
    return predictions


@dataclass(frozen=True)
class Measured:
    """A row on a data set: scores in 0..1, and the mean over valid pixels of -log marginal."""

    mean_iou: float
    pixel_accuracy: float
    nll: float


def validate(
    model: DeepCRF,
    dataset: SegmentationDataset,
    amp: bool | None,
    trained: Sequence[str],
    stop: Callable[[], bool],
    world: World,
) -> dict[str, Measured] | None:
    """`validation_rows` over a data set at full size; None when `stop` says so.

    Rows with a potential that is not among `trained` are left out. Each process measures its share
    of the images, and the scores are those of all. Leaves the model in eval mode.
    """
    model.eval()
    rows = {
        title: row
        for title, row in validation_rows(model).items()
        if set(row.potentials) <= set(trained)
    }
    metrics = {title: SegmentationMetrics(dataset.num_classes) for title in rows}
    sums = torch.zeros(1 + len(rows), dtype=torch.float64)  # valid pixels, then each row's nll
    for image, labels in read_ahead(dataset, world.share(len(dataset))):
        if stop():
            break
        sums[0] += (labels != IGNORE_INDEX).sum()
        predictions = predict_rows(model, image, rows, amp)
        for position, (title, marginals) in enumerate(predictions.items(), 1):
            metrics[title].update(marginals.argmax(0).cpu(), labels)
            logs = marginals.clamp(min=torch.finfo(marginals.dtype).tiny).log()
            truth = labels.to(logs.device)
            sums[position] += functional.nll_loss(
                logs[None], truth[None], ignore_index=IGNORE_INDEX, reduction="sum"
            ).cpu()
    if any(world.any(stop())):
        return None
    pixels, *nll = world.sum(sums).tolist()
    for metric in metrics.values():
        metric.add_up(world)
    scores = {title: metric.compute() for title, metric in metrics.items()}
    return {
        title: Measured(score.mean_iou, score.pixel_accuracy, total / max(1, pixels))
        for (title, score), total in zip(scores.items(), nll, strict=True)
    }


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
        maps = [sample.labels, *(m.argmax(0).cpu().numpy() for m in predictions.values())]
        pictures.append([sample.image, *(colour(labels, dataset.palette) for labels in maps)])
    columns = ["image", "truth", *(titles[title] for title in rows)]
    picture_grid(pictures, columns, path, dataset.classes, dataset.palette)
