"""Any torch data set of images and labels, as the data sets of this package."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from deepcrf_ext.data.base import Sample, SegmentationDataset
from deepcrf_ext.data.class_lists import ClassList
from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.errors import InputError


class LabelledPairs(SegmentationDataset):
    """A data set whose items are (image, labels), such as torchvision's.

    Args:
        dataset: with a length, and items by index. Of an item, the image is a PIL image, uint8
            [H, W, 3] or [H, W], or a tensor [3, H, W], uint8 or floating in 0..1; the labels are a
            PIL image, array or tensor, [H, W] or [1, H, W] of integers.
        classes: the K class names, at most 255, in the order of their indices.
        palette: uint8 [K, 3], RGB; None takes VOC's colours.
        ignore: a label of ignored pixels beside 255. Masks of 0 and 255 alone are only trained on
            where it is 255.

    Raises TypeError for a data set without a length, and InputError for classes that are none.
    Reading an item raises InputError where it is none of these, for labels of another size than
    their image, and for a label that is neither an index of a class nor ignored.

    Example:
        >>> pairs = torch.utils.data.TensorDataset(
        ...     torch.rand(4, 3, 32, 48), torch.randint(2, (4, 32, 48))
        ... )
        >>> train = LabelledPairs(pairs, ("background", "crack"))
        >>> train[0].image.shape, train[0].labels.dtype
        ((32, 48, 3), dtype('uint8'))
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        classes: Sequence[str],
        palette: np.ndarray | None = None,
        ignore: int | None = None,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"dataset: got {type(dataset).__name__}, must have a length and items by index, "
                "as list(dataset) has"
            )
        self.dataset, self.ignore = dataset, ignore
        if isinstance(classes, str):
            raise TypeError(f"classes: got {classes!r}, must be a sequence of names")
        self.classes = ClassList(tuple(classes)).names
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
        item = self.dataset[index]
        if not (isinstance(item, tuple | list) and len(item) == 2):
            held = f" of {', '.join(map(str, item))}" if isinstance(item, dict) else ""
            raise InputError(
                f"item {index}: got {type(item).__name__}{held}, must be (image, labels)"
            )
        image, labels = item
        sample = Sample(_image(image, index), self._labels(labels, index), str(index))
        if sample.image.shape[:2] != sample.labels.shape:
            raise InputError(
                f"item {index}: labels are {list(sample.labels.shape)}, must be of the image's "
                f"size, {list(sample.image.shape[:2])}"
            )
        return sample

    def _labels(self, labels: Any, index: int) -> np.ndarray:
        array = _array(labels) if isinstance(labels, torch.Tensor) else np.asarray(labels)
        if array.ndim == 3 and array.shape[0] == 1:
            array = array[0]
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"item {index}: labels are {array.dtype} {list(array.shape)}, must be integers "
                "[H, W]"
            )
        array = array.astype(np.int64)
        if self.ignore is not None:
            array = np.where(array == self.ignore, self.ignore_index, array)
        wrong = array[((array < 0) | (array >= self.num_classes)) & (array != self.ignore_index)]
        if wrong.size:
            raise InputError(
                f"item {index}: label {wrong[0]} must be 0..{self.num_classes - 1} or "
                f"{self.ignore_index}"
            )
        return np.ascontiguousarray(array, np.uint8)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor of any device, attached to a graph or not; NumPy has no bfloat16."""
    plain = tensor.detach().cpu()
    array: np.ndarray = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def _image(image: Any, index: int) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        array = _array(image)
        if array.ndim == 3 and array.shape[0] in (1, 3):
            array = np.moveaxis(array, 0, 2)
        if np.issubdtype(array.dtype, np.floating):
            if not (array.min() >= 0 and array.max() <= 1):
                raise InputError(
                    f"item {index}: image holds {array.min():g}..{array.max():g}, must be 0..1 "
                    "(leave normalisation to the model)"
                )
            array = np.round(255 * array.astype(np.float32)).astype(np.uint8)
    else:
        array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise InputError(
            f"item {index}: image is {array.dtype} {list(array.shape)}, must be uint8 [H, W, 3] or "
            "a tensor [3, H, W]"
        )
    return np.ascontiguousarray(array)
