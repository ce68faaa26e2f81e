"""What any model says of images, in files: which belong together, and their unary energies."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data.base import require_folder
from deepcrf_ext.data.file_patterns import FilePattern
from deepcrf_ext.data.images import IMAGE_SUFFIXES, read_image, read_labels, voc_palette
from deepcrf_ext.data.predictions import (
    ARRAY_SUFFIXES,
    LabelPicture,
    Layout,
    read_label_picture,
    read_probabilities,
    read_saliency,
)
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.prediction import upsample_labels
from deepcrf_ext.models.upsampling import upsample_part
from deepcrf_ext.ops.dense_crf_params import unary_from_labels, unary_from_probabilities

Kind = Literal["auto", "labels", "probabilities", "logits", "saliency"]

CERTAINTY = {"labels": 0.7, "saliency": 0.9, "probabilities": 1.0, "logits": 1.0}
"""What `MaskSettings.certainty` is where it is not given."""
_GREY_LEVELS = 100  # more in one picture are no classes


@dataclass(frozen=True)
class MaskFiles:
    """An image, its mask and, where it is known, its true labels. name: their common name."""

    name: str
    image: Path
    mask: Path
    truth: Path | None = None


@dataclass(frozen=True)
class MaskSettings:
    """How masks are to be read.

    kind: what they hold; "auto" takes arrays for probabilities and pictures for labels.
    certainty: the probability of a given label; of other kinds, what the largest probability is
        mixed down to with uniform ones, 1 for as they are. None for `CERTAINTY`.
    unsure: the label of pixels that could be anything; None if there is none.
    num_classes: of label maps. None to look for the highest label in all of them.
    layout: which axis of an array is that of the classes.
    """

    kind: Kind = "auto"
    certainty: float | None = None
    unsure: int | None = IGNORE_INDEX
    num_classes: int | None = None
    layout: Layout = "auto"

    def __post_init__(self) -> None:
        """Raises InputError for a number out of range."""
        if self.certainty is not None and not 0 < self.certainty <= 1:
            raise InputError(f"certainty: got {self.certainty}, must lie in (0, 1]")
        if self.unsure is not None and not 0 <= self.unsure <= 255:
            raise InputError(f"unsure: got {self.unsure}, must be in 0..255")
        if self.num_classes is not None and not 2 <= self.num_classes <= 255:
            raise InputError(f"classes: got {self.num_classes}, must be in 2..255")

    def kind_of(self, path: Path) -> Kind:
        """What a file holds."""
        is_array = path.suffix.lower() in ARRAY_SUFFIXES
        if self.kind == "auto":
            return "probabilities" if is_array else "labels"
        if is_array != (self.kind in ("probabilities", "logits")):
            wanted = ", ".join(ARRAY_SUFFIXES) if not is_array else "pictures"
            raise InputError(f"{path}: --kind {self.kind} is for {wanted}")
        return self.kind


@dataclass(frozen=True)
class Masked:
    """An image with what a model says of it.

    kind: of the mask, never "auto". image: uint8 [3, H, W]. probabilities: float32 [K, h, w], or
        None where there are labels alone.
    labels: uint8 [H, W], the model's own; `num_classes` where it is unsure. num_classes: K.
    truth: uint8 [H, W], or None. coding: how labels are to be written.
    """

    name: str
    kind: Kind
    image: Tensor
    probabilities: Tensor | None
    labels: Tensor
    num_classes: int
    truth: Tensor | None
    coding: LabelPicture
    certainty: float

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[1], self.image.shape[2]

    def energies(
        self, device: torch.device, rows: slice | None = None, columns: slice | None = None
    ) -> Tensor:
        """Unary energies at the size of the image, or of a part of it, float32 [K, H, W]."""
        rows = slice(0, self.size[0]) if rows is None else rows
        columns = slice(0, self.size[1]) if columns is None else columns
        if self.probabilities is None:
            # A probability of 1 would forbid the other labels.
            certainty = min(self.certainty, 1 - 1e-5)
            labels = self.labels[None, rows, columns].to(device)
            return unary_from_labels(labels, self.num_classes, certainty, self.num_classes)[0]
        part = upsample_part(self.probabilities.to(device), self.size, rows, columns)
        mixed = self.certainty * part + (1 - self.certainty) / self.num_classes
        return unary_from_probabilities(mixed)

    def encode(self, labels: np.ndarray) -> LabelPicture:
        """Labels, uint8 [H, W], in the coding of the mask."""
        return replace(self.coding, labels=_SALIENT[labels] if self.kind == "saliency" else labels)

    def decode(self, picture: LabelPicture) -> Tensor:
        """Labels, uint8 [H, W], that `encode` coded."""
        labels = torch.from_numpy(picture.labels)
        return (labels > 0).to(torch.uint8) if self.kind == "saliency" else labels


_EMPTY = np.empty((0, 0), np.uint8)
_SALIENT = np.array([0, 255], np.uint8)


def read_masked(files: MaskFiles, settings: MaskSettings) -> Masked:
    """Read an image, its mask and its truth. Raises InputError naming the file at fault."""
    kind = settings.kind_of(files.mask)
    image = torch.from_numpy(read_image(files.image)).permute(2, 0, 1).contiguous()
    size = (image.shape[1], image.shape[2])
    certainty = CERTAINTY[kind] if settings.certainty is None else settings.certainty
    if kind == "labels":
        coding = read_label_picture(files.mask)
        if settings.num_classes is None:
            raise ValueError("num_classes: got None, must be known, as from count_classes")
        labels = _resized(files, torch.from_numpy(coding.labels), size)
        labels = _checked_labels(files.mask, labels, settings.num_classes, settings.unsure)
        probabilities, count = None, settings.num_classes
    else:
        if kind == "saliency":
            foreground = torch.from_numpy(read_saliency(files.mask))
            _resized(files, foreground, size)
            probabilities = torch.stack([1 - foreground, foreground])
            coding = LabelPicture(_EMPTY, "L", None)
        else:
            array = read_probabilities(files.mask, size, settings.layout, logits=kind == "logits")
            probabilities = torch.from_numpy(array)
            palette = tuple(voc_palette(256).flatten().tolist())
            coding = LabelPicture(_EMPTY, "P", palette)
        count = len(probabilities)
        labels = upsample_labels(probabilities, size)
    truth = None if files.truth is None else _read_truth(files, kind, size, count)
    return Masked(files.name, kind, image, probabilities, labels, count, truth, coding, certainty)


def _resized(files: MaskFiles, plane: Tensor, size: tuple[int, int]) -> Tensor:
    """A plane [h, w] at the size of the image, by nearest neighbours."""
    (rows, columns), (height, width) = plane.shape, size
    if (rows, columns) == size:
        return plane
    if abs(rows * width - columns * height) > max(height, width):
        raise InputError(
            f"{files.mask}: is {columns}x{rows} pixels, but its image {files.image} is "
            f"{width}x{height}, of other proportions"
        )
    grown = functional.interpolate(plane[None, None].double(), size, mode="nearest-exact")
    return grown[0, 0].to(plane.dtype)


def _checked_labels(path: Path, labels: Tensor, count: int, unsure: int | None) -> Tensor:
    """Labels with `count` for the unsure one."""
    known = torch.ones_like(labels, dtype=torch.bool) if unsure is None else labels != unsure
    wrong = labels[known & (labels >= count)]
    if len(wrong):
        raise InputError(f"{path}: label value {int(wrong[0])}; must be in 0..{count - 1}")
    return labels.where(known, count)


def _read_truth(files: MaskFiles, kind: Kind, size: tuple[int, int], count: int) -> Tensor:
    assert files.truth is not None
    if kind == "saliency":
        truth = torch.from_numpy((read_saliency(files.truth) > 0.5).astype(np.uint8))
    else:
        truth = torch.from_numpy(read_labels(files.truth))
    if tuple(truth.shape) != size:
        (rows, columns), (height, width) = truth.shape, size
        raise InputError(
            f"{files.truth}: is {columns}x{rows} pixels, but its image {files.image} is "
            f"{width}x{height}"
        )
    wrong = truth[(truth >= count) & (truth != IGNORE_INDEX)]
    if len(wrong):
        raise InputError(
            f"{files.truth}: label value {int(wrong[0])}; must be in 0..{count - 1}, or "
            f"{IGNORE_INDEX} for ignored pixels"
        )
    return truth


def count_classes(files: Sequence[MaskFiles], settings: MaskSettings, workers: int) -> MaskSettings:
    """The settings with the number of classes that label maps and their truth speak of.

    Files that cannot be read are passed over. Raises InputError where there are fewer than two, and
    where what is taken for label maps are grey-level pictures.
    """
    maps = [f for f in files if settings.kind_of(f.mask) == "labels"]
    if settings.num_classes is not None or not maps:
        return settings
    guess = settings.kind == "auto"

    def top_label(file: MaskFiles) -> int:
        top = -1
        for path in (file.mask, file.truth):
            try:
                if path is None:
                    continue
                picture = read_label_picture(path)
            except InputError:
                continue  # named when its turn comes
            values = np.unique(picture.labels)
            if guess and path is file.mask and picture.mode == "L" and len(values) > _GREY_LEVELS:
                raise InputError(
                    f"{path}: holds {len(values)} grey levels; --kind saliency takes them for "
                    "probabilities of a foreground, --kind labels for classes"
                )
            ignored = settings.unsure if path is file.mask else IGNORE_INDEX
            known = values[values != ignored] if ignored is not None else values
            highest = int(known.max(initial=0))
            if highest == 255:
                raise InputError(
                    f"{path}: label value 255; must be below 255, or unsure (--unsure 255)"
                )
            top = max(top, highest)
        return top

    with ThreadPoolExecutor(workers) as threads:
        count = max(threads.map(top_label, maps)) + 1
    if count == 0:  # none could be read
        read_label_picture(maps[0].mask)
    if count < 2:
        raise InputError(
            f"{maps[0].mask.parent}: the masks hold no label but 0 and the unsure one, "
            f"{settings.unsure}: --kind saliency takes masks of 0 and 255, --unsure says which "
            "label is unsure, --classes how many there are"
        )
    return replace(settings, num_classes=count)


def pair_masks(
    images: Path,
    masks: Path,
    truth: Path | None = None,
    patterns: tuple[str, str, str] = ("**", "**", "**"),
    results: Collection[Path] = (),
) -> tuple[list[MaskFiles], list[str]]:
    """Images with masks of their names, and what does not fit, a line each.

    Two files are a pair whatever their names. In folders, names are paths without suffixes, or the
    `{name}` of a pattern (see `FilePattern`). An image without a mask is left out in silence.
    results: folders of results, whose files are neither where they lie below the others.

    Raises InputError where there is no pair.
    """
    if images.is_file() and masks.is_file():
        return [MaskFiles(images.stem, images, masks, truth)], []
    options = ("--image-pattern", "--mask-pattern", "--truth-pattern")
    suffixes = (IMAGE_SUFFIXES, (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES), IMAGE_SUFFIXES)
    folders = (images, masks, truth)
    found: list[dict[str, list[Path]]] = []
    for folder, option, text, known in zip(folders, options, patterns, suffixes, strict=True):
        if folder is None:
            found.append({})
            continue
        require_folder(folder, f"a folder ({option[2:].split('-')[0]}s)")
        matched = FilePattern(option, text, known).find(folder, "")
        inner = {path.resolve() for path in results} - {folder.resolve()}
        everything = {path for paths in matched.files.values() for path in paths}
        matched.leave_out({path for path in everything if inner & set(path.resolve().parents)})
        found.append(matched.files)
    images_found, masks_found, truth_found = found
    masked = {path.resolve() for paths in masks_found.values() for path in paths}
    images_found = {
        name: [p for p in paths if p.resolve() not in masked] or paths
        for name, paths in images_found.items()
    }
    pairs: list[MaskFiles] = []
    problems: list[str] = []
    shared: list[str] = []
    for name, paths in masks_found.items():
        candidates = images_found.get(unicodedata.normalize("NFC", name), [])
        true = truth_found.get(name, [])
        for kind, several in (("masks", paths), ("images", candidates), ("truths", true)):
            if len(several) > 1:
                shared.append(f"{', '.join(map(str, several))}: {kind} that share a name")
        if not candidates:
            problems.append(f"{paths[0]}: mask without image")
        elif max(len(paths), len(candidates), len(true)) == 1:
            pairs.append(MaskFiles(name, candidates[0], paths[0], true[0] if true else None))
    if not pairs and shared:
        raise InputError(
            f"{shared[0]}; --image-pattern and --mask-pattern say which are which, such as "
            "'{name}_mask.png'"
        )
    if not pairs:
        raise InputError(
            f"{masks}: {_few(masks_found, 'mask')}, and {images}: {_few(images_found, 'image')}, "
            "have no name in common; --mask-pattern and --image-pattern say how they are called, "
            "such as '{name}_mask.png'"
        )
    return pairs, problems + shared


def _few(names: Iterable[str], noun: str) -> str:
    listed = list(names)
    shown = ", ".join(listed[:3])
    return f"{len(listed)} {noun}s" + (
        f" ({shown}{', …' if len(listed) > 3 else ''})" * bool(shown)
    )
