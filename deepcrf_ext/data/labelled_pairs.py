"""Any torch data set of images and labels, as the data sets of this package."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from deepcrf_ext.data.base import Sample, SegmentationDataset
from deepcrf_ext.data.images import voc_palette


class LabelledPairs(SegmentationDataset):
    """A data set whose items are (image, labels), such as torchvision's.

    Args:
        dataset: with a length. Of an item, the image is a PIL image, uint8 [H, W, 3] or [H, W], or
            a tensor [3, H, W], uint8 or floating in 0..1; the labels are a PIL image, array or
            tensor, [H, W] or [1, H, W] of integers.
        classes: the K class names, in the order of their indices.
        palette: uint8 [K, 3], RGB; None takes VOC's colours.
        ignore: a label of ignored pixels beside 255.

    Reading an item raises ValueError where it is none of these, and for a label that is neither an
    index of a class nor ignored.

    Example:
        >>> train = LabelledPairs(torchvision.datasets.OxfordIIITPet(...), ("pet", "background"))
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        classes: Sequence[str],
        palette: np.ndarray | None = None,
        ignore: int | None = None,
    ) -> None:
        self.dataset, self.ignore = dataset, ignore
        self.classes = tuple(classes)
        self.palette = voc_palette(len(self.classes)) if palette is None else palette
        if self.palette.shape != (len(self.classes), 3) or self.palette.dtype != np.uint8:
            raise ValueError(
                f"palette: got {self.palette.dtype} {list(self.palette.shape)}, must be uint8 "
                f"[{len(self.classes)}, 3]"
            )

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image, labels = self.dataset[index]
        return Sample(_image(image, index), self._labels(labels, index), str(index))

    def _labels(self, labels: Any, index: int) -> np.ndarray:
        array = labels.numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
        if array.ndim == 3 and array.shape[0] == 1:
            array = array[0]
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"item {index}: labels are {array.dtype} {list(array.shape)}, must be integers "
                "[H, W]"
            )
        if self.ignore is not None:
            array = np.where(array == self.ignore, self.ignore_index, array)
        wrong = array[((array < 0) | (array >= self.num_classes)) & (array != self.ignore_index)]
        if wrong.size:
            raise ValueError(
                f"item {index}: label {wrong[0]} must be 0..{self.num_classes - 1} or "
                f"{self.ignore_index}"
            )
        return np.ascontiguousarray(array, np.uint8)


def _image(image: Any, index: int) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        array = image.numpy()
        if array.ndim == 3 and array.shape[0] in (1, 3):
            array = np.moveaxis(array, 0, 2)
        if np.issubdtype(array.dtype, np.floating):
            if array.min() < 0 or array.max() > 1:
                raise ValueError(
                    f"item {index}: image holds {array.min():g}..{array.max():g}, must be 0..1 "
                    "(leave normalisation to the model)"
                )
            array = np.round(255 * array).astype(np.uint8)
    else:
        array = np.asarray(image if isinstance(image, np.ndarray) else image.convert("RGB"))
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"item {index}: image is {array.dtype} {list(array.shape)}, must be uint8 [H, W, 3] or "
            "a tensor [3, H, W]"
        )
    return np.ascontiguousarray(array)
