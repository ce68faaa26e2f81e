"""A data set cut down for short runs: fewer images, and smaller ones."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from deepcrf_ext.data.base import Sample, SegmentationDataset
from deepcrf_ext.data.images import shrink
from deepcrf_ext.libraries import cv2

Data = TypeVar("Data")


class Reduced(SegmentationDataset):
    """Some images of a data set, spread evenly over it, shrunk to a longest side.

    Args:
        dataset: what to take from; its classes, palette and names stay.
        images: how many images to keep; None, or more than there are, keeps all.
        max_side: longest side in pixels; a larger image is shrunk by averaging over areas, its
            labels by nearest neighbour. None keeps sizes.

    Raises:
        ValueError: images or max_side is below 1.
    """

    def __init__(
        self, dataset: SegmentationDataset, images: int | None = None, max_side: int | None = None
    ) -> None:
        for name, value in (("images", images), ("max_side", max_side)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, must be at least 1")
        self.dataset, self.max_side = dataset, max_side
        self.classes, self.palette = dataset.classes, dataset.palette
        self.ignore_index, self.source = dataset.ignore_index, dataset.source
        self.indices = spread(len(dataset), images)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[self.indices[index]]
        image = shrink(sample.image, self.max_side)
        if image is sample.image:
            return sample
        size = (image.shape[1], image.shape[0])
        labels = cv2.resize(sample.labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return Sample(image, np.asarray(labels, np.uint8), sample.name)


def spread(total: int, wanted: int | None) -> list[int]:
    """Indices of as many of `total` items as are wanted, spread evenly; of all for None."""
    count = total if wanted is None else min(wanted, total)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def whole(dataset: Data) -> Data | SegmentationDataset:
    """What a `Reduced` data set takes from; any other as it is."""
    return dataset.dataset if isinstance(dataset, Reduced) else dataset
