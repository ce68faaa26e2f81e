"""Weights of the classes in the losses, so that rare ones count."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deepcrf_ext.data import SegmentationDataset
from deepcrf_ext.parallel.world import ALONE, World
from deepcrf_ext.progress import progress


def median_frequency_weights(dataset: SegmentationDataset, world: World = ALONE) -> Tensor:
    """Median frequency balancing (Eigen and Fergus, arXiv:1411.4734, section 6.2), float32 [K].

    The frequency of a class is its share of the labelled pixels of the images that it occurs in;
    its weight is the median of all frequencies divided by its own. A class without a pixel weighs
    1. Reads every label map once, each process its share of them, showing its progress.
    """
    num_classes = dataset.num_classes
    totals = np.zeros((2, num_classes), np.int64)  # of the class, of all in its images
    indices = world.share(len(dataset))
    for index in progress(
        indices, len(indices), "class frequencies", "image", quiet=not world.is_main
    ):
        counts = np.bincount(dataset[index].labels.ravel(), minlength=256)[:num_classes]
        totals += counts, counts.sum() * (counts > 0)
    pixels, among = world.sum(torch.from_numpy(totals)).numpy()
    seen = pixels > 0
    weights = np.ones(num_classes)
    if seen.any():
        frequency = pixels[seen] / among[seen]
        weights[seen] = np.median(frequency) / frequency
    return torch.from_numpy(weights).float()
