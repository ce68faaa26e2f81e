"""PASCAL VOC 2012 segmentation, with the additional annotations of SBD."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from deepcrf_ext.data.base import FileDataset, LabelledFile, listed, require_folder
from deepcrf_ext.data.file_patterns import visible
from deepcrf_ext.data.images import read_labels, voc_palette
from deepcrf_ext.data.split_files import existing_pair, pairs, read_lines
from deepcrf_ext.errors import InputError, reason
from deepcrf_ext.settings_files import find_file

# All that scipy is known to raise on damaged files.
_MAT_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    NotImplementedError,
    EOFError,
    OverflowError,
    MemoryError,
    MatReadError,
    zlib.error,
)
CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)


class Voc(FileDataset):
    """VOC 2012 in its own folders: JPEGImages, SegmentationClass and ImageSets/Segmentation.

    `root` is the folder VOC2012, the VOCdevkit that holds it, or the folder that holds VOCdevkit.

    The split `train_aug` adds the annotations of the Semantic Boundaries Dataset (Hariharan et al.,
    "Semantic Contours from Inverse Detectors", ICCV 2011), as PNGs in SegmentationClassAug or as
    the .mat files of benchmark_RELEASE, which is looked for in VOC2012, beside it and beside
    VOCdevkit. Its images are those of ImageSets/Segmentation/train_aug.txt, or, if there is no such
    list, (SBD train + SBD val + VOC train) - VOC val, sorted: 10,582 images. VOC's own annotation
    is preferred where an image has both.

    A list, also one given as `split_file` (found below VOC2012 or where it is, {split} in it
    replaced), holds names, or pairs of an image and its labels as paths below VOC2012, as the list
    of these 10,582 that is passed around: /JPEGImages/X.jpg /SegmentationClassAug/X.png.

    `test` has no public labels: its pixels are all 255.

    Raises:
        InputError: a folder, list, image or label file is missing, or a line is none of these.
            Unless it is `strict`, lines that lead nowhere are left out and named in `problems`.
    """

    def __init__(
        self, root: Path, split: str, split_file: str | None = None, strict: bool = True
    ) -> None:
        self.root = _find_voc(root)
        self.benchmark = _find_benchmark(self.root)
        require_folder(self.root / "JPEGImages", "the folder of VOC images")
        lines, source = self._lines(split, split_file)
        files, self.problems = [], []
        for line in lines:
            try:
                files.append(self._find(line, split, source))
            except InputError as error:
                self.problems.append(str(error))
        if strict and self.problems:
            raise InputError(listed(self.problems))
        super().__init__(files, CLASSES, voc_palette(len(CLASSES)))

    def _find(self, line: str, split: str, source: Path) -> LabelledFile:
        """The files that a line of a list names. Raises InputError where there are none."""
        pair = existing_pair(self.root, line) if "/" in line else None
        if pair is not None:
            return LabelledFile(pair[0].stem, *pair)
        if next(pairs(self.root, line), None) is not None and "/" in line:
            raise InputError(f"{source}: {line!r} names no image and label below {self.root}")
        _require_plain(line, source)
        image = self.root / "JPEGImages" / f"{line}.jpg"
        if not image.is_file():
            raise InputError(f"{image}: no such file, but the split {split} names it")
        labels = None if split == "test" else self._label_file(line, split)
        return LabelledFile(line, image, labels)

    def decode_labels(self, path: Path) -> np.ndarray:
        """Read a label PNG or an SBD .mat file as uint8 [H, W]."""
        return read_sbd_labels(path) if path.suffix == ".mat" else read_labels(path)

    def _lines(self, split: str, split_file: str | None) -> tuple[Sequence[str], Path]:
        """What a split lists, and the file that is to blame for a line."""
        lists = self.root / "ImageSets" / "Segmentation"
        if split_file is not None:
            name = split_file.replace("{split}", split)
            path = find_file("data.split_file", name, self.root, "a file of the images of a split")
            return read_lines(path), path
        path = lists / f"{split}.txt"
        if split != "train_aug" or path.exists():
            return read_lines(path), path
        names = self._sbd_names() | set(read_names(lists / "train.txt"))
        return sorted(names - set(read_names(lists / "val.txt"))), path

    def _sbd_names(self) -> set[str]:
        if self.benchmark is not None:
            train, val = (self.benchmark / f"{split}.txt" for split in ("train", "val"))
            return {*read_names(train), *read_names(val)}
        folder = require_folder(
            self.root / "SegmentationClassAug",
            "the label PNGs of SBD (or its benchmark_RELEASE must lie beside VOC2012)",
        )
        names = {path.stem for path in visible(folder) if path.suffix == ".png"}
        if not names:
            raise InputError(f"{folder}: holds no label; must hold .png files")
        return names

    def _label_file(self, name: str, split: str) -> Path:
        candidates = [self.root / "SegmentationClass" / f"{name}.png"]
        if split == "train_aug":
            candidates.append(self.root / "SegmentationClassAug" / f"{name}.png")
            if self.benchmark is not None:
                candidates.append(self.benchmark / "cls" / f"{name}.mat")
        for path in candidates:
            if path.is_file():
                return path
        image = self.root / "JPEGImages" / f"{name}.jpg"
        raise InputError(f"{image}: image without label; looked for {_listed(candidates)}")


def read_names(path: Path) -> tuple[str, ...]:
    """Read a split file: one image name a line, blank lines apart.

    Raises:
        InputError: the file is missing, empty or not text, or a line is not a plain file name.
    """
    names = read_lines(path)
    for name in names:
        _require_plain(name, path)
    return names


def _require_plain(name: str, path: Path) -> None:
    if not all(letter.isalnum() or letter in "_-." for letter in name) or ".." in name:
        raise InputError(
            f"{path}: names {name!r}; must be an image name such as 2007_000032, without a path"
        )


def read_sbd_labels(path: Path) -> np.ndarray:
    """Read the class map `GTcls.Segmentation` of an SBD .mat file as uint8 [H, W].

    Raises:
        InputError: the file is damaged or holds no such map.
    """
    try:
        with path.open("rb") as file:  # of a name, SciPy does not say why it cannot be opened
            labels = loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except _MAT_ERRORS as error:
        raise InputError(
            f"{path}: cannot be read as an SBD label file ({reason(error)})"
        ) from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype != np.uint8:
        raise InputError(f"{path}: GTcls.Segmentation must be a map of uint8")
    return labels


def _find_voc(root: Path) -> Path:
    require_folder(root, "VOC2012, VOCdevkit or the folder that holds VOCdevkit")
    candidates = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    for folder in candidates:
        if (folder / "JPEGImages").is_dir():
            return folder
    raise InputError(f"{root}: holds no JPEGImages folder; looked in {_listed(candidates)}")


def _find_benchmark(voc: Path) -> Path | None:
    resolved = Path(os.path.realpath(voc))
    for folder in (voc, resolved.parent, resolved.parent.parent):
        benchmark = folder / "benchmark_RELEASE" / "dataset"
        if (benchmark / "cls").is_dir():
            return benchmark
    return None


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(str(path) for path in paths)
