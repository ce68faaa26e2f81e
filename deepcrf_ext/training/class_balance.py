"""Weights of the classes in the losses, so that rare ones count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from deepcrf_ext.data import SegmentationDataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.parallel.world import ALONE, World
from deepcrf_ext.progress import progress
from deepcrf_ext.settings_files import home_expanded, parse_yaml


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


_FORMS = "none, median_frequency, a list of one weight a class, or a map of classes to weights"


def plain_balance(balance: object, classes: Sequence[str]) -> str | tuple[float, ...]:
    """`TrainConfig.class_balance` without a file or names: what it says, or one weight a class.

    Raises InputError for a file that cannot be read, for unknown classes and for numbers that
    cannot be weights.
    """
    if isinstance(balance, str):
        if balance in ("none", "median_frequency"):
            return balance
        path = home_expanded(balance)
        if not path.is_file():
            raise InputError(f"class_balance: {balance} is not a file; must be {_FORMS}, or a file")
        balance = parse_yaml(path)
    if isinstance(balance, Mapping):
        unknown = [str(name) for name in balance if name not in classes]
        if unknown:
            raise InputError(
                f"class_balance: got the classes {', '.join(unknown)}, must be some of "
                f"{', '.join(classes)}"
            )
        balance = [balance.get(name, 1.0) for name in classes]
    if not isinstance(balance, list | tuple):
        raise InputError(f"class_balance: got {balance!r}, must be {_FORMS}")
    if len(balance) != len(classes):
        raise InputError(
            f"class_balance: got {len(balance)} weights, must be {len(classes)}, one for each of "
            f"{', '.join(classes)}"
        )
    for name, weight in zip(classes, balance, strict=True):
        if type(weight) not in (int, float) or not 0 <= weight < math.inf:
            raise InputError(
                f"class_balance: the weight of {name} is {weight!r}, must be a number of at least 0"
            )
    if not any(balance):
        raise InputError("class_balance: all weights are 0, must be positive for some class")
    return tuple(float(weight) for weight in balance)
