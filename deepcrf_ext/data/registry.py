"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepcrf_ext.config.data import DataSource
from deepcrf_ext.data.base import SegmentationDataset, require_folder
from deepcrf_ext.data.camvid import CamVid
from deepcrf_ext.data.folder import FolderDataset
from deepcrf_ext.data.scenes import Scenes
from deepcrf_ext.data.voc import Voc
from deepcrf_ext.errors import InputError
from deepcrf_ext.settings_files import home_expanded

Factory = Callable[[Path | None, str], SegmentationDataset]

DATASETS: dict[str, tuple[str, ...]] = {
    "scenes": ("train", "val", "test"),
    "camvid": ("train", "val", "test"),
    "voc": ("train", "val", "test", "trainval", "train_aug"),
    "folder": (),
}
"""The splits of every data set; of folder, and of those that are registered without, any."""

BUILT_IN = {"scenes": Scenes, "camvid": CamVid, "voc": Voc, "folder": FolderDataset}
IN_PYTHON = "python"
"""What the settings of a run call data that no name stands for."""
_FACTORIES: dict[str, Factory] = {}
_FOLDER_ALONE = ("images", "masks", "classes", "labels")


def register_dataset(name: str, factory: Factory, splits: Sequence[str] = ()) -> None:
    """Makes a data set known to `open_dataset`, and to the commands as `--data.dataset NAME`.

    Args:
        name: how it is called; an earlier registration of the name is replaced.
        factory: called with the root (a path, or None) and the name of a split; returns the split,
            a `SegmentationDataset` (`LabelledPairs` makes one of any torch data set).
        splits: those it has; none means that the factory takes any name.

    Raises ValueError for the name of a built-in data set.

    Example::

        def cracks(root, split):
            return LabelledPairs(CrackImages(root, split), ("background", "crack"))

        register_dataset("cracks", cracks)
        deepcrf_ext.train.main(["--data.dataset", "cracks", "--data.root", "cracks/"])
    """
    if name in DATASETS and name not in _FACTORIES:
        raise ValueError(f"name: got {name!r}, must not be that of a built-in data set")
    _FACTORIES[name] = factory
    DATASETS[name] = tuple(splits)


def open_dataset(
    dataset: str | DataSource,
    root: str | Path | None = None,
    split: str = "train",
    seed: int = 0,
    *,
    strict: bool = True,
) -> SegmentationDataset:
    """Open one split of a data set.

    Args:
        dataset: scenes (built in, rendered), camvid, voc, or one that is registered; or where a
            data set comes from, as settings say it, with its root. Needed for a folder, whose
            classes the settings give.
        root: the folder of the data; None for scenes, and beside settings.
        split: train, val or test; for voc also trainval and train_aug; for folder any that its
            patterns find. voc's test has no labels: all its pixels are 255.
        seed: what scenes are rendered; the other data sets do not depend on it.
        strict: raise where images lack labels and the like. If not, they are left out, and
            `FileDataset.problems`, which `check_files` gives too, names them.

    Raises:
        InputError: an unknown data set or split, a missing, empty or incomplete root, or settings
            of another data set.
        TypeError: what `register_dataset` was given made something else.
    """
    if isinstance(dataset, str):
        dataset = DataSource(dataset, None if root is None else Path(root))
    source = dataset
    name = source.dataset
    if name == IN_PYTHON:
        raise InputError(
            "data.dataset: the training was given its data in Python; must be given, such as "
            "folder with data.root and data.labels, or one of register_dataset"
        )
    if name not in DATASETS:
        raise InputError(f"data.dataset: got {name!r}, must be one of {', '.join(DATASETS)}")
    listed = name == "voc" and source.split_file is not None
    if DATASETS[name] and split not in DATASETS[name] and not listed:
        raise InputError(
            f"split: got {split!r}, must be a split of {name}: {', '.join(DATASETS[name])}"
        )
    _refuse_foreign_settings(source)
    if name == "scenes":
        if source.root is not None:
            raise InputError(
                f"data.root: got {source.root}, must be left out for scenes, which are rendered; "
                "images and masks of your own are data.dataset folder"
            )
        return Scenes(split, seed)
    if name in _FACTORIES:
        made = _FACTORIES[name](source.root, split)
        if not isinstance(made, SegmentationDataset):
            raise TypeError(
                f"data.dataset: {name} gave {type(made).__name__}, must be a SegmentationDataset; "
                "LabelledPairs makes one of any data set of pairs"
            )
        return made
    if source.root is None:
        raise InputError(f"data.root: not given, must be the folder of the data set, {name}")
    purpose = f"the folder of the data set, {name}"
    folder = require_folder(home_expanded(source.root), purpose, "data.root")
    if name == "voc":
        return Voc(folder, split, source.split_file, strict)
    if name == "camvid":
        return CamVid(folder, split, strict)
    return FolderDataset(folder, split, source, strict)


def _refuse_foreign_settings(source: DataSource) -> None:
    """Raises InputError for settings that the data set would not read."""
    if source.dataset == "folder":
        return
    given: dict[str, Any] = {name: getattr(source, name) for name in _FOLDER_ALONE}
    if source.dataset != "voc":
        given["split_file"] = source.split_file
    for name, value in given.items():
        if value is not None:
            raise InputError(f"data.{name}: goes with data.dataset folder, not {source.dataset}")
