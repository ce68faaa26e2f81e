"""One's own data: a folder of images and masks, in any layout that patterns or lists describe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deepcrf_ext.config.data import DataSource
from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data.base import (
    FileDataset,
    FileReport,
    LabelledFile,
    listed,
    require_folder,
)
from deepcrf_ext.data.class_lists import ClassList, read_classes
from deepcrf_ext.data.images import open_picture, orientation
from deepcrf_ext.data.label_maps import (
    CODING_COLOURS,
    IGNORE,
    Labels,
    class_names,
    coding_name,
    colour_code,
    describe_code,
    explicit_map,
    implied_map,
    is_grey,
    map_colours,
    read_labels_setting,
    value_code,
)
from deepcrf_ext.data.masks import is_turned, read_codes, read_palette
from deepcrf_ext.data.pairing import pair_files
from deepcrf_ext.errors import InputError

_BY_COLOUR = "whose colours --data.palette-masks colours reads"
_TELL = (
    "--data.palette-masks colours reads its colours; where its indices count, --data.labels of "
    "them alone says so"
)


class FolderDataset(FileDataset):
    """A split of a folder of images and masks.

    Args:
        root: the folder.
        split: replaces {split} in the patterns.
        source: how the folder is laid out, and what its masks mean; its dataset and root do not
            matter here.
        strict: raise for what does not fit in the folder. If not, only what fits is taken, and
            `problems` has the rest.

    Attributes:
        source: as given, with classes and labels as plain values instead of files.
        pairing: what was found.

    Raises:
        InputError: source, classes or labels cannot be used; no images are where the pattern
            says; images lack masks or masks images, or share a name; or all masks hold 0 and 255
            alone and no label map says what 255 is.
    """

    def __init__(self, root: Path, split: str, source: DataSource, strict: bool = True) -> None:
        require_folder(root, "the folder of images and masks")
        labels = read_labels_setting(source.labels, root)
        classes = self._classes(root, source, labels)
        self.source = replace(
            source, classes=classes.plain(), labels=coding_name(source.labels) or labels
        )
        self.palette_masks = source.palette_masks
        self.told = labels is not None
        if labels is None:
            self.label_map = implied_map(classes.names, classes.colours)
            colours = classes.colours or {}
            self.by_colour = {colour_code(colours[name]): k for k, name in enumerate(colours)}
        else:
            self.label_map = explicit_map(labels, classes.names)
            self.by_colour = {c: k for c, k in self.label_map.as_dict().items() if not is_grey(c)}
        self.pairing = pair_files(root, split, source)
        super().__init__(self.pairing.files, classes.names, classes.palette)
        if labels is None and not (strict and self.pairing.problems):
            self.pairing.problems += self._only_255_beside_0(split)
        self.problems = self.pairing.problems
        if strict and self.problems:
            raise InputError(f"{root}: {listed(self.problems)}")

    @property
    def coding(self) -> str:
        """How labels are read, as text: what they depend on beside their file."""
        return f"folder {self.palette_masks} {self.label_map}"

    def decode_labels(self, path: Path) -> np.ndarray:
        """Read one mask as uint8 [H, W] of class indices and 255."""
        try:
            return self.label_map.apply(read_codes(path, self.palette_masks), path)
        except InputError as error:
            if self.palette_masks == "colours" or not read_palette(path):
                raise
            raise InputError(f"{error}; these are indices of its palette, {_BY_COLOUR}") from error

    def details(self, file: LabelledFile) -> dict[str, Any]:
        """The colours of the mask's palette, and whether EXIF turns its image alone."""
        if file.labels is None:
            return {}
        with open_picture(file.image) as image:
            turn = orientation(image)
            fits = turn in (2, 3, 4) or (turn > 4 and image.width == image.height)
        turned = fits and not is_turned(file.labels)
        palette = {} if self.palette_masks == "colours" else read_palette(file.labels)
        return {"turned": turned, "palette": palette}

    def doubts(self, reports: Sequence[FileReport]) -> list[str]:
        """Masks that `classes` or `labels` explain in two ways, or others in another."""
        binary = [] if self.told else self._mixed_binary(reports)
        return [*binary, *self._palettes(reports)]

    def _mixed_binary(self, reports: Sequence[FileReport]) -> Iterable[str]:
        """Masks of 0 and 255 among others of 0 and 1."""
        ones = [r for r in reports if 1 in r.counts]
        ignoring = [r for r in reports if IGNORE_INDEX in r.counts]
        both = any(IGNORE_INDEX in r.counts for r in ones)
        more = any(not r.counts.keys() <= {0, 1, IGNORE_INDEX} for r in reports)
        if ones and ignoring and not both and not more:
            second = self.classes[1]
            yield (
                f"{ignoring[0].file.labels}: holds 255 and no 1, as {len(ignoring)} of "
                f"{len(reports)} masks, others 1 and no 255; say what 255 is by --data.labels "
                f"'{{0: {self.classes[0]}, 1: {second}, 255: {second} or ignore}}'"
            )

    def _palettes(self, reports: Sequence[FileReport]) -> Iterable[str]:
        """Masks with palettes by whose colours indices mean other classes than by their values, or
        not the same in all masks where nothing says what they mean."""
        first: dict[int, tuple[int, Path | None]] = {}
        names = {**dict(enumerate(self.classes)), IGNORE_INDEX: IGNORE}
        labels = self.label_map.as_dict()
        for report in reports:
            mask = report.file.labels
            for index, code in report.palette.items():
                known, where = first.setdefault(index, (code, mask))
                here = f"{mask}: index {index} of its palette is {describe_code(code)}"
                label = labels[value_code(index)]
                by_colour = self.by_colour.get(code, label)
                if by_colour != label:
                    both = f"the colour of {names[by_colour]}, not of {names[label]}"
                    yield f"{here}, {both}; {_TELL}"
                    break
                if not self.told and code != known and index != IGNORE_INDEX:
                    yield f"{here}, in {where} {describe_code(known)}; {_TELL}"
                    break

    @staticmethod
    def _classes(root: Path, source: DataSource, labels: Labels | None) -> ClassList:
        if source.classes is not None:
            return read_classes(source.classes, root)
        if labels is None:
            raise InputError(
                "data.classes: not given; must be the names of the classes, such as "
                "[background, crack] or a file of them, or data.labels must map to names; "
                f"python -m deepcrf_ext.data {root} shows what the masks hold"
            )
        names = class_names(labels)
        coding = coding_name(source.labels)
        colours = map_colours(labels) if coding is None else CODING_COLOURS[coding]
        return ClassList(names, colours)

    def _only_255_beside_0(self, split: str) -> list[str]:
        """The problem of masks of 0 and 255 without a label map: they would train on 0 alone."""
        seen: set[int] = set()
        for file in self.files:
            if file.labels is None:
                continue
            try:
                seen.update(np.unique(read_codes(file.labels, self.palette_masks)).tolist())
            except InputError:
                continue  # named when it is checked or read
            if not seen <= {value_code(0), value_code(IGNORE_INDEX)}:
                return []
        if value_code(IGNORE_INDEX) not in seen:
            return []
        second = self.classes[1] if self.num_classes == 2 else "NAME"
        held = " and ".join(describe_code(code) for code in sorted(seen))
        learnt = f"nothing but {self.classes[0]}" if value_code(0) in seen else "nothing"
        return [
            f"all masks of {split} hold {held} alone, and 255 means ignored pixels, so that "
            f"{learnt} would be learnt; if 255 is a class, give "
            f"--data.labels '{{0: {self.classes[0]}, 255: {second}}}'"
        ]
