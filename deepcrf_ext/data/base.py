"""What every data set gives: samples of an image and its label map, class names and a palette."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from deepcrf_ext.config.data import DataSource
from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data.images import read_image, read_labels
from deepcrf_ext.errors import InputError

LISTED = 5  # problems in one error, at most


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        labels: uint8 [H, W], class indices; 255 marks pixels that are ignored.
        name: unique within the data set, usable as a file name.
    """

    image: np.ndarray
    labels: np.ndarray
    name: str


class SegmentationDataset(Dataset[Sample]):
    """A finite sequence of :class:`Sample`.

    Attributes:
        classes: the K class names, in the order of their indices.
        palette: uint8 [K, 3], the RGB colour of each class.
        source: the settings that describe it for a checkpoint; None where they are those it was
            opened by.
        ignore_index: the label of ignored pixels, 255.
    """

    classes: tuple[str, ...]
    palette: np.ndarray
    source: DataSource | None = None
    ignore_index: int = IGNORE_INDEX

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError


@dataclass(frozen=True)
class LabelledFile:
    """An image file and its label file (None: the labels are not public)."""

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class FileReport:
    """What reading an image and its mask gave.

    problem: why they cannot be used, naming the file; None where they can.
    size: (height, width) in pixels; None with a problem.
    counts: pixels by label, 255 among them; empty with a problem.
    palette: the codes of colours (see `label_maps`) of the indices that a mask holds, where it has
        a palette and is read by its indices.
    turned: whether EXIF turns the image, and its mask is of a size that fits either way.
    """

    file: LabelledFile
    problem: str | None
    size: tuple[int, int] | None = None
    counts: dict[int, int] = field(default_factory=dict)
    palette: dict[int, int] = field(default_factory=dict)
    turned: bool = False


def count_labels(labels: np.ndarray) -> dict[int, int]:
    """How many pixels of a label map, uint8, have each label that is there."""
    counts = np.bincount(labels.ravel(), minlength=256)
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}


def labels_in(reports: Sequence[FileReport]) -> set[int]:
    """The labels that pixels of these files have, 255 among them."""
    return {label for report in reports for label in report.counts}


class FileDataset(SegmentationDataset):
    """Images and label maps in files, decoded on access.

    Reading a sample raises :class:`InputError`, naming the file, when a file cannot be decoded,
    when the label map differs in size from its image or when it holds a value that is no class.

    Attributes:
        files: what can be read.
        problems: what does not fit together, a line each; where there is any, the data set was
            opened with ``strict=False``.
    """

    problems: Sequence[str] = ()

    def __init__(
        self, files: Sequence[LabelledFile], classes: tuple[str, ...], palette: np.ndarray
    ) -> None:
        self.files = tuple(files)
        self.classes = classes
        self.palette = palette

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return self.read(self.files[index])

    @property
    def coding(self) -> str:
        """How labels are read, as text: what they depend on beside their file."""
        return f"{type(self).__name__} {self.num_classes}"

    def read(self, file: LabelledFile) -> Sample:
        """The sample of a file. Raises InputError as described above."""
        image = read_image(file.image)
        if file.labels is None:
            return Sample(image, np.full_like(image[..., 0], self.ignore_index), file.name)
        labels = self.decode_labels(file.labels)
        (rows, columns), (height, width) = labels.shape, image.shape[:2]
        if (rows, columns) != (height, width):
            turned = (
                "; where its EXIF orientation turns it, the mask must be turned too"
                if (columns, rows) == (height, width)
                else ""
            )
            raise InputError(
                f"{file.labels}: label map is {columns}x{rows} pixels, "
                f"but its image {file.image} is {width}x{height}{turned}"
            )
        wrong = labels[(labels >= self.num_classes) & (labels != self.ignore_index)]
        if wrong.size:
            raise InputError(
                f"{file.labels}: label value {wrong[0]} is out of range; "
                f"must be 0..{self.num_classes - 1}, or {self.ignore_index} for ignored pixels"
            )
        return Sample(image, labels, file.name)

    def decode_labels(self, path: Path) -> np.ndarray:
        """Read one label file as uint8 [H, W] of class indices and 255."""
        return read_labels(path)

    def details(self, file: LabelledFile) -> dict[str, Any]:
        """What else a `FileReport` of a file that can be read holds: fields by name."""
        return {}

    def doubts(self, reports: Sequence[FileReport]) -> list[str]:
        """Why files that can be read, each by itself, may mean something else: a line each."""
        return []


def require_folder(path: Path, purpose: str, option: str | None = None) -> Path:
    """Return `path` if it is a folder, else raise :class:`InputError` naming it, its purpose and
    the option that gave it."""
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        named = "" if option is None else f"{option}: "
        raise InputError(f"{named}{path}: {problem}{where}; must be {purpose}")
    return path


def listed(problems: Sequence[str]) -> str:
    """Problems in one line: how many, and the first of them."""
    rest = len(problems) - LISTED
    more = f"; and {rest} more, which python -m deepcrf_ext.data lists" if rest > 0 else ""
    count = f"{len(problems)} problems: " if len(problems) > 1 else ""
    return count + "; ".join(problems[:LISTED]) + more


def turned_notice(images: Sequence[Path]) -> str:
    """A line about images that EXIF turns, with masks whose size fits either way."""
    more = f" and {len(images) - 3} more" if len(images) > 3 else ""
    return (
        f"turned by EXIF: {', '.join(map(str, images[:3]))}{more}; their masks, whose size "
        "fits either way, are taken for those of the turned images (see the contact sheet of "
        "python -m deepcrf_ext.data)"
    )
