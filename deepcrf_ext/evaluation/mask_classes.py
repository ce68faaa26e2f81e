"""How many classes there are in masks of any model, where nothing says so."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data.arrays import is_array
from deepcrf_ext.data.images import is_lossy
from deepcrf_ext.data.label_maps import (
    IGNORE,
    LOSSY,
    MAX_CLASSES,
    Labels,
    code_values,
    describe_code,
    is_grey,
    value_code,
)
from deepcrf_ext.data.predictions import read_label_map
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.mask_files import MaskFiles
from deepcrf_ext.evaluation.masks import MaskSettings

_GREY_LEVELS = 100  # more in one picture are no classes


def count_classes(files: Sequence[MaskFiles], settings: MaskSettings, workers: int) -> MaskSettings:
    """The settings with the number of classes in label maps and their truth, and with
    `MaskSettings.labels` where these hold colours.

    Files that cannot be read are passed over. Raises InputError where there are fewer than two
    classes or more than 255, for label maps in a lossy format, and where what is taken for label
    maps are grey-level pictures.
    """
    maps = [file for file in files if settings.kind_of(file.mask) == "labels"]
    if settings.labels is not None:
        return _of_labels(settings)
    if not maps or settings.num_classes is not None:
        return _with_unsure(settings)
    paths = {
        "masks": [file.mask for file in maps],
        "truths": [file.truth for file in maps if file.truth is not None],
    }
    guessed = {"masks": settings.kind == "auto", "truths": False}
    with ThreadPoolExecutor(workers) as threads:
        found = {
            name: list(threads.map(partial(_codes, guessed=guessed[name]), own))
            for name, own in paths.items()
            if own
        }
    folder = maps[0].mask.parent
    every = {code for own in found.values() for codes in own for code in codes}
    if not every:  # none could be read
        read_label_map(maps[0].mask)
    coloured = {name: not all(map(is_grey, set().union(*own))) for name, own in found.items()}
    if all(coloured.values()):
        return _of_colours(settings, every, folder)
    if any(coloured.values()):
        indices, colours = sorted(coloured, key=lambda name: coloured[name])
        raise InputError(
            f"{folder}: the {colours} hold colours, the {indices} indices; --labels says what both "
            "are"
        )
    settings = _with_unsure(settings)
    ignored = {"masks": settings.unsure, "truths": IGNORE_INDEX}
    highest = max(
        _highest_label(path, codes, ignored[name])
        for name, own in found.items()
        for path, codes in zip(paths[name], own, strict=True)
    )
    if highest < 1:
        raise InputError(
            f"{folder}: the masks hold no label but 0 and the unsure one, {settings.unsure}: "
            "--kind saliency takes masks of 0 and 255, and so does --labels '{0: background, 255: "
            "NAME}'; --unsure says which label is unsure, --classes how many there are"
        )
    return replace(settings, num_classes=highest + 1)


def _codes(path: Path, guessed: bool) -> set[int]:
    """The codes in a label map; none for a file that cannot be read. guessed: that it is one."""
    try:
        codes, coding = read_label_map(path)
    except InputError:
        return set()  # named when its turn comes
    found = set(np.unique(codes).tolist())
    grey = coding.mode == "L" and not is_array(path) and all(map(is_grey, found))
    if guessed and grey and len(found) > _GREY_LEVELS:
        raise InputError(
            f"{path}: holds {len(found)} grey levels; --kind saliency takes them for probabilities "
            "of a foreground, --kind labels for classes"
        )
    if is_lossy(path):
        raise InputError(f"{path}: {LOSSY.replace('data.labels', '--labels')}")
    return found


def _highest_label(path: Path, codes: set[int], ignored: object) -> int:
    """The highest label of a map of indices but the one that is ignored; 0 without any."""
    values: list[int] = code_values(np.array(sorted(codes), np.int32)).tolist()
    highest = max({*values} - {ignored}, default=0)
    if highest >= 255:
        raise InputError(
            f"{path}: label value {highest}; must be below 255, or unsure (--unsure 255)"
        )
    return highest


def _with_unsure(settings: MaskSettings) -> MaskSettings:
    """Settings of masks of indices."""
    return replace(settings, unsure=IGNORE_INDEX if settings.unsure == "auto" else settings.unsure)


def _of_labels(settings: MaskSettings) -> MaskSettings:
    """Settings whose label map names the classes."""
    assert settings.labels is not None
    for name, value in (("unsure", settings.unsure), ("classes", settings.num_classes)):
        if value not in ("auto", None):
            raise InputError(f"{name}: goes without --labels, which says what every value is")
    assert settings.coding is not None
    _, written = settings.coding
    if len(written) < 2:
        raise InputError(f"--labels: got {settings.labels}, must name at least two classes")
    return replace(settings, unsure=None, num_classes=len(written))


def _of_colours(settings: MaskSettings, codes: set[int], folder: Path) -> MaskSettings:
    """Settings of masks of which each colour is a class."""
    unsure = value_code(settings.unsure) if isinstance(settings.unsure, int) else None
    if not 2 <= len(codes - {unsure}) <= MAX_CLASSES:
        raise InputError(
            f"{folder}: the masks hold {len(codes - {unsure})} colours; must be 2..{MAX_CLASSES}, "
            "each of a class; --labels says what colours are"
        )
    names = {describe_code(code).strip("'"): code for code in sorted(codes)}
    labels: Labels = {name: IGNORE if code == unsure else name for name, code in names.items()}
    return _of_labels(replace(settings, unsure=None, labels=labels))
