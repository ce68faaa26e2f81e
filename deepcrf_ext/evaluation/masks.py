"""What any model says of images, in files of any kind, and the unary energies of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data.arrays import ARRAY_SUFFIXES, holds_label_map, is_array
from deepcrf_ext.data.images import read_image, voc_palette
from deepcrf_ext.data.label_maps import (
    LabelMap,
    Labels,
    class_names,
    code_values,
    describe_code,
    explicit_map,
    first_codes,
    is_grey,
    value_code,
)
from deepcrf_ext.data.predictions import (
    LabelCoding,
    Layout,
    read_label_map,
    read_probabilities,
    read_saliency,
)
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.mask_files import MaskFiles
from deepcrf_ext.evaluation.prediction import upsample_labels
from deepcrf_ext.models.upsampling import upsample_part
from deepcrf_ext.ops.dense_crf_params import unary_from_labels, unary_from_probabilities

Kind = Literal["auto", "labels", "probabilities", "logits", "saliency"]

CERTAINTY = {"labels": 0.7, "saliency": 0.9, "probabilities": 1.0, "logits": 1.0}
"""What `MaskSettings.certainty` is where it is not given."""


@contextmanager
def about_labels() -> Iterator[None]:
    """Within it, errors about data.labels are about --labels, which is alike."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("data.labels", "--labels")) from error


@dataclass(frozen=True)
class MaskSettings:
    """How masks are to be read.

    kind: what they hold; "auto" takes pictures and planes of integers for labels, other arrays for
        probabilities.
    certainty: the probability of a given label; of other kinds, what the largest probability is
        mixed down to with uniform ones, 1 for as they are. None for `CERTAINTY`.
    unsure: the label of pixels that could be anything; None if there is none. "auto" is 255 in maps
        of indices, and none in those of colours.
    num_classes: of label maps. None to look for the highest label in all of them.
    layout: which axis of an array is that of the classes.
    labels: the class of each value or colour in label maps, "ignore" where unsure, as
        `DataSource.labels`. None where they hold indices, or colours of which each is a class.
    """

    kind: Kind = "auto"
    certainty: float | None = None
    unsure: int | Literal["auto"] | None = "auto"
    num_classes: int | None = None
    layout: Layout = "auto"
    labels: Labels | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a number out of range."""
        if self.certainty is not None and not 0 < self.certainty <= 1:
            raise InputError(f"certainty: got {self.certainty}, must lie in (0, 1]")
        if isinstance(self.unsure, int) and not 0 <= self.unsure <= 255:
            raise InputError(f"unsure: got {self.unsure}, must be in 0..255")
        if self.num_classes is not None and not 2 <= self.num_classes <= 255:
            raise InputError(f"classes: got {self.num_classes}, must be in 2..255")

    @cached_property
    def coding(self) -> tuple[LabelMap, tuple[int, ...]] | None:
        """What `labels` says of every code, and the code to write of every class."""
        if self.labels is None:
            return None
        with about_labels():
            names = class_names(self.labels)
            return explicit_map(self.labels, names), first_codes(self.labels)

    def kind_of(self, path: Path) -> Kind:
        """What a file holds."""
        array = is_array(path)
        if self.kind == "auto":
            return "probabilities" if array and not holds_label_map(path) else "labels"
        if self.kind != "labels" and array != (self.kind != "saliency"):
            wanted = "pictures" if array else ", ".join(ARRAY_SUFFIXES)
            raise InputError(f"{path}: --kind {self.kind} is for {wanted}")
        return self.kind

    def read_labels(self, path: Path) -> tuple[Tensor, LabelCoding]:
        """The labels of a label map, uint8 [h, w], with 255 for what `labels` ignores, and how it
        is stored. Raises InputError naming it."""
        codes, coding = read_label_map(path)
        if self.coding is not None:
            label_map, written = self.coding
            with about_labels():
                labels = label_map.apply(codes, path)
            return torch.from_numpy(labels), replace(coding, codes=written)
        strange = next(
            (
                int(c)
                for c in np.unique(codes)
                if not 0 <= c <= value_code(255) or not is_grey(int(c))
            ),
            None,
        )
        if strange is not None:
            raise InputError(
                f"{path}: holds {describe_code(strange)}; must hold indices 0..255, or --labels "
                "says what its values and colours are"
            )
        return torch.from_numpy(code_values(codes).astype(np.uint8)), coding


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
    coding: LabelCoding
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


def read_masked(files: MaskFiles, settings: MaskSettings) -> Masked:
    """Read an image, its mask and its truth. Raises InputError naming the file at fault."""
    kind = settings.kind_of(files.mask)
    image = torch.from_numpy(read_image(files.image)).permute(2, 0, 1).contiguous()
    size = (image.shape[1], image.shape[2])
    certainty = CERTAINTY[kind] if settings.certainty is None else settings.certainty
    if kind == "labels":
        if settings.num_classes is None:
            raise ValueError("num_classes: got None, must be known, as from count_classes")
        given, coding = settings.read_labels(files.mask)
        unsure = settings.unsure if settings.labels is None else IGNORE_INDEX
        assert unsure != "auto"  # which count_classes has made a label
        labels = _resized(files, given, size)
        labels = _checked_labels(files.mask, labels, settings.num_classes, unsure)
        probabilities, count = None, settings.num_classes
    else:
        if kind == "saliency":
            foreground = torch.from_numpy(read_saliency(files.mask))
            _resized(files, foreground, size)
            probabilities = torch.stack([1 - foreground, foreground])
            coding = LabelCoding("L", codes=(value_code(0), value_code(255)))
        else:
            array = read_probabilities(files.mask, size, settings.layout, logits=kind == "logits")
            probabilities = torch.from_numpy(array)
            coding = LabelCoding("P", tuple(voc_palette(256).flatten().tolist()))
        count = len(probabilities)
        labels = upsample_labels(probabilities, size)
    truth = None if files.truth is None else _read_truth(files, settings, kind, size, count)
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


def _read_truth(
    files: MaskFiles, settings: MaskSettings, kind: Kind, size: tuple[int, int], count: int
) -> Tensor:
    assert files.truth is not None
    if kind == "saliency":
        truth = torch.from_numpy((read_saliency(files.truth) > 0.5).astype(np.uint8))
    else:
        truth, _ = settings.read_labels(files.truth)
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
