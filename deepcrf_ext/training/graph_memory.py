"""Whether the edges of crops and of validation images fit into memory, told before training."""

from __future__ import annotations

import math

import torch

from deepcrf_ext.config import TrainConfig
from deepcrf_ext.data import SegmentationDataset
from deepcrf_ext.data.base import FileDataset
from deepcrf_ext.data.images import open_picture
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.views import ONE_VIEW, Views
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.nn.grid_graphs import GraphMemoryError, check_memory


def check_crop_memory(
    config: TrainConfig, model: DeepCRF, num_images: int, processes: int, device: torch.device
) -> None:
    """Raises InputError where the edges of a part of a batch do not fit into memory.

    num_images: of the data set. processes: those that share a batch.
    """
    if config.data.crop is None:
        return
    images = math.ceil(min(config.batch_size, num_images) / processes)
    images = math.ceil(images / config.accumulate)
    try:
        _check(model, images, model.grid_size(*config.data.crop), device)
    except GraphMemoryError as error:
        raise InputError(
            f"data.crop: got {list(config.data.crop)}, {images} at a time, too large. {error}; or "
            "set a smaller data.crop or batch_size, or a larger accumulate"
        ) from error


def validation_views(
    config: TrainConfig, model: DeepCRF, dataset: SegmentationDataset, device: torch.device
) -> tuple[Views, str]:
    """How validation shows images to the networks: whole, and no word; or in windows of the size of
    the training's crops where the largest image would not fit into memory, and a line about it.

    Images that are no files are taken to fit. Raises InputError where there are no crops either.
    """
    size = _largest_size(dataset)
    if size is None:
        return ONE_VIEW, ""
    crop = config.data.crop
    if model.backbone is None or crop is None:
        grid = model.grid_size(*size)
    else:  # whose grid is found by a trial run, for which the image may be too large
        rows, columns = model.grid_size(*crop)
        grid = -(-size[0] * rows // crop[0]), -(-size[1] * columns // crop[1])
    try:
        _check(model, 1, grid, device)
    except GraphMemoryError as error:
        largest = f"{size[1]}x{size[0]} pixels"
        if crop is None:
            raise InputError(
                f"data.crop: must be set, as validation images of {largest} are too large to be "
                f"seen whole. {error}"
            ) from error
        return Views(window=crop), (
            f"validation shows images in windows of {crop[1]}x{crop[0]} pixels, as data.crop: the "
            f"graphs of the largest, {largest}, would not fit into memory"
        )
    return ONE_VIEW, ""


def _check(model: DeepCRF, images: int, grid: tuple[int, int], device: torch.device) -> None:
    """Raises GraphMemoryError, naming the relation, for images with this many rows and columns."""
    for name, relation in model.config.relations.items():
        if name in model.potential_names:
            try:
                check_memory(relation.box(*grid), images, *grid, device)
            except GraphMemoryError as error:
                raise GraphMemoryError(f"{name} {error}") from error


def _largest_size(dataset: SegmentationDataset) -> tuple[int, int] | None:
    """Height and width of the image file with the most edges; None where there are no files."""
    if not isinstance(dataset, FileDataset):
        return None
    sizes = set()
    for file in dataset.files:
        with open_picture(file.image) as picture:
            sizes.add((picture.height, picture.width))
    return max(sizes, key=lambda size: math.prod(size) * min(size) ** 2, default=None)
