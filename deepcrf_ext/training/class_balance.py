"""Weights of the classes in the losses, so that rare ones count."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from deepcrf_ext.data import SegmentationDataset


def median_frequency_weights(dataset: SegmentationDataset) -> Tensor:
    """Median frequency balancing (Eigen and Fergus, arXiv:1411.4734, section 6.2), float32 [K].

    The frequency of a class is its share of the labelled pixels of the images that it occurs in;
    its weight is the median of all frequencies divided by its own. A class without a pixel weighs
    1. Reads every label map once, behind a progress bar.
    """
    num_classes = dataset.num_classes
    pixels = np.zeros(num_classes, np.int64)
    among = np.zeros(num_classes, np.int64)
    for index in tqdm(range(len(dataset)), "class frequencies", unit="image", leave=False):
        counts = np.bincount(dataset[index].labels.ravel(), minlength=256)[:num_classes]
        pixels += counts
        among[counts > 0] += counts.sum()
    seen = pixels > 0
    weights = np.ones(num_classes)
    if seen.any():
        frequency = pixels[seen] / among[seen]
        weights[seen] = np.median(frequency) / frequency
    return torch.from_numpy(weights).float()
