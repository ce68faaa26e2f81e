"""Whether the edges of a step's crops fit into memory, told before training begins."""

from __future__ import annotations

import math

import torch

from deepcrf_ext.config import TrainConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.nn.grid_graphs import check_memory


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
    height, width = model.grid_size(*config.data.crop)
    for name, relation in model.config.relations.items():
        if name not in model.potential_names:
            continue
        try:
            check_memory(relation.box(height, width), images, height, width, device)
        except InputError as error:
            raise InputError(
                f"data.crop: got {list(config.data.crop)}, {images} at a time, too large. "
                f"{name} {error}; or set a smaller data.crop or batch_size, or a larger accumulate"
            ) from error
