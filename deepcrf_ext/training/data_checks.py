"""Whether data sets made in Python, and a model, can be trained on each other; told before."""

from __future__ import annotations

import numpy as np

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data import LabelledPairs, SegmentationDataset
from deepcrf_ext.data.class_lists import ClassList
from deepcrf_ext.data.reduced import spread, whole
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF

PROBED = 16  # items of `LabelledPairs` that are looked at for values other than 0 and 255


def check_data(
    train_set: SegmentationDataset, val_set: SegmentationDataset, model: DeepCRF | None
) -> None:
    """Raises TypeError for what is no `SegmentationDataset`, ValueError for a model of another
    number of classes, and InputError for data sets that are empty, of one class, of other classes
    than each other, or whose labels are 0 and 255 alone."""
    for name, dataset in (("train_set", train_set), ("val_set", val_set)):
        if not isinstance(dataset, SegmentationDataset):
            raise TypeError(
                f"{name}: got {type(dataset).__name__}, must be a SegmentationDataset; "
                "deepcrf_ext.data.LabelledPairs makes one of any data set of pairs"
            )
        if len(dataset) == 0:
            raise InputError(f"{name}: got an empty data set, must hold at least one image")
    if len(ClassList(tuple(train_set.classes)).names) < 2:
        name = train_set.classes[0]
        raise InputError(
            f"data.classes: got {name} alone, must be at least two, such as background and {name}"
        )
    if model is not None and model.num_classes != train_set.num_classes:
        raise ValueError(
            f"model: has {model.num_classes} classes, must have those of train_set, "
            f"{train_set.num_classes}"
        )
    if tuple(val_set.classes) != tuple(train_set.classes):
        raise InputError(
            f"data.val_split: has the classes {', '.join(val_set.classes)}; training has "
            f"{', '.join(train_set.classes)}"
        )
    for name, dataset in (("train_set", train_set), ("val_set", val_set)):
        _refuse_255_beside_0(name, dataset)


def _refuse_255_beside_0(name: str, dataset: SegmentationDataset) -> None:
    """Masks of 0 and 255 would train on class 0 alone, unless 255 is said to be ignored."""
    pairs = whole(dataset)
    if not isinstance(pairs, LabelledPairs) or pairs.ignore == IGNORE_INDEX:
        return
    seen: set[int] = set()
    for index in spread(len(dataset), PROBED):
        seen.update(np.unique(dataset[index].labels).tolist())
        if not seen <= {0, IGNORE_INDEX}:
            return
    if IGNORE_INDEX in seen:
        held = " and ".join(map(str, sorted(seen)))
        raise InputError(
            f"{name}: labels are {held} alone, and 255 means ignored pixels, so that only "
            f"{dataset.classes[0]} would be learnt; make 255 an index of a class, or say "
            "LabelledPairs(..., ignore=255)"
        )
