"""Data sets, image files and training transforms."""

from __future__ import annotations

from pathlib import Path

from deepcrf_ext.data.base import Sample, SegmentationDataset
from deepcrf_ext.data.camvid import CamVid
from deepcrf_ext.data.images import read_image, read_labels, shrink, write_labels
from deepcrf_ext.data.read_ahead import read_ahead
from deepcrf_ext.data.scenes import Scenes
from deepcrf_ext.data.transforms import TrainTransform, to_tensors
from deepcrf_ext.data.voc import Voc
from deepcrf_ext.errors import InputError

__all__ = [
    "DATASETS",
    "Sample",
    "SegmentationDataset",
    "TrainTransform",
    "open_dataset",
    "read_ahead",
    "read_image",
    "read_labels",
    "shrink",
    "to_tensors",
    "write_labels",
]

# The splits of every data set.
DATASETS: dict[str, tuple[str, ...]] = {
    "scenes": ("train", "val", "test"),
    "camvid": ("train", "val", "test"),
    "voc": ("train", "val", "test", "trainval", "train_aug"),
}


def open_dataset(
    dataset: str, root: str | Path | None, split: str, seed: int = 0
) -> SegmentationDataset:
    """Open one split of a data set.

    Args:
        dataset: scenes (built in, rendered), camvid or voc.
        root: the folder of camvid or voc; None for scenes.
        split: train, val or test; for voc also trainval and train_aug. voc's test has no labels:
            all its pixels are 255.
        seed: what scenes are rendered; the other data sets do not depend on it.

    Raises:
        InputError: an unknown data set or split, or a missing, empty or incomplete root.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset is {dataset!r}; must be one of {', '.join(DATASETS)}")
    if split not in DATASETS[dataset]:
        raise InputError(
            f"split is {split!r}; {dataset} has the splits {', '.join(DATASETS[dataset])}"
        )
    if dataset == "scenes":
        if root is not None:
            raise InputError(
                f"root is {str(root)!r}; must be left out for scenes, which are rendered"
            )
        return Scenes(split, seed)
    if root is None:
        raise InputError(f"root is not given; must be the folder of the {dataset} data")
    folder = Path(root).expanduser()
    return CamVid(folder, split) if dataset == "camvid" else Voc(folder, split)
