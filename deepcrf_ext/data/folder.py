"""One's own data: a folder of images and masks, in any layout that patterns or lists describe."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from deepcrf_ext.config.data import DataSource
from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data.base import FileDataset, LabelledFile, listed, require_folder
from deepcrf_ext.data.class_lists import ClassList, read_classes
from deepcrf_ext.data.file_patterns import FilePattern, Found, describe_folders
from deepcrf_ext.data.label_maps import (
    CODING_COLOURS,
    Labels,
    class_names,
    coding_name,
    describe_code,
    explicit_map,
    implied_map,
    map_colours,
    read_labels_setting,
    value_code,
)
from deepcrf_ext.data.masks import read_codes
from deepcrf_ext.data.settings_files import find_file
from deepcrf_ext.data.split_files import below, existing_pair, read_lines
from deepcrf_ext.errors import InputError

_PROBED = 50  # masks that are looked at for values other than 0 and 255


@dataclass
class Pairing:
    """The images of a split with their masks, and what does not fit.

    problems: one a file. left_out: files that are no images.
    """

    files: list[LabelledFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


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
        if labels is None:
            self.label_map = implied_map(classes.names, classes.colours)
        else:
            self.label_map = explicit_map(labels, classes.names)
        self.pairing = pair_files(root, split, source)
        super().__init__(self.pairing.files, classes.names, classes.palette)
        if labels is None and not (strict and self.pairing.problems):
            self.pairing.problems += self._only_255_beside_0(root)
        self.problems = self.pairing.problems
        if strict and self.problems:
            raise InputError(f"{root}: {listed(self.problems)}")

    @property
    def coding(self) -> str:
        """What the labels of a file depend on beside the file itself, as text."""
        return f"folder {self.palette_masks} {self.label_map}"

    def decode_labels(self, path: Path) -> np.ndarray:
        """Read one mask as uint8 [H, W] of class indices and 255."""
        return self.label_map.apply(read_codes(path, self.palette_masks), path)

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

    def _only_255_beside_0(self, root: Path) -> list[str]:
        """The problem of masks of 0 and 255 without a label map: they would train on 0 alone."""
        seen: set[int] = set()
        for file in self.files[:_PROBED]:
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
        return [
            f"masks hold {held} alone, and 255 means ignored pixels, so that nothing but "
            f"{self.classes[0]} would be learnt; if 255 is a class, give "
            f"--data.labels '{{0: {self.classes[0]}, 255: {second}}}'"
        ]


def pair_files(root: Path, split: str, source: DataSource) -> Pairing:
    """The images of a split with their masks, whatever the classes.

    Raises InputError when no image is found, with what was found instead.
    """
    every = "**" if source.split_file else "{split}/**"
    images = FilePattern("data.images", source.images or f"images/{every}")
    masks = FilePattern("data.masks", source.masks or f"masks/{every}")
    found, found_masks = images.find(root, split), masks.find(root, split)
    mask_paths = {path for paths in found_masks.files.values() for path in paths}
    found.leave_out(mask_paths)  # where x.png and x_mask.png lie side by side
    if source.split_file is not None:
        name = source.split_file.replace("{split}", split)
        file = find_file("data.split_file", name, root, "a file of the images of a split")
        return _pair_by_list(root, file, found, found_masks)
    for option, pattern, files in (("images", images, found), ("masks", masks, found_masks)):
        if not files.files:
            folder = pattern.folder(root, split)
            problem = f"holds no {option}" if folder.is_dir() else "does not exist"
            raise InputError(
                f"{folder}: {problem} (data.{option} {pattern.text!r}, split {split!r}); "
                f"{describe_folders(root)}"
            )
    return _pair_by_name(root, found, masks, found_masks)


def _pair_by_name(root: Path, images: Found, masks: FilePattern, found: Found) -> Pairing:
    result = Pairing(left_out=images.others + found.others)
    result.problems += [*_same_names("images", images), *_same_names("masks", found)]
    for name, paths in sorted(images.files.items()):
        if name in found.files:
            result.files.append(LabelledFile(_file_name(name), paths[0], found.files[name][0]))
        else:
            result.problems.append(f"{paths[0]}: image without mask")
    lonely = [name for name in found.files if name not in images.files]
    result.problems += [f"{found.files[name][0]}: mask without image" for name in lonely]
    if not result.files:
        raise InputError(
            f"{root}: none of {len(images.files)} images has a mask of its name, such as "
            f"{next(iter(images.files))!r}; masks are called {lonely[0]!r}; "
            f"{_suggest(masks.text, list(images.files), lonely)}"
        )
    return result


def _pair_by_list(root: Path, file: Path, images: Found, masks: Found) -> Pairing:
    """By lines that are names, or pairs of paths."""
    result = Pairing(left_out=images.others + masks.others)
    names = _Names(root, images)
    pairs: dict[Path, tuple[str | None, Path]] = {}  # image -> name, mask
    for line in read_lines(file):
        name = names.find(line)
        if name is not None:
            image, *further = images.files[name]
            candidates = masks.files.get(name, [])
            if further or len(candidates) > 1:
                shared = ", ".join(map(str, [image, *further] if further else candidates))
                result.problems.append(f"{shared}: share the name {name!r} in {file}")
                continue
            if not candidates:
                result.problems.append(f"{image}: image without mask, named in {file}")
                continue
            mask = candidates[0]
        else:
            pair = existing_pair(root, line)
            if pair is None:
                result.problems.append(f"{file}: {line!r} names no image with a mask below {root}")
                continue
            image, mask = pair
        if image in pairs:
            result.problems.append(f"{file}: names {image} twice")
        pairs[image] = name, mask
    stems = Counter(image.stem for image in pairs)
    for image, (name, mask) in pairs.items():
        if name is None:
            unique = stems[image.stem] == 1
            name = image.stem if unique else image.relative_to(root).with_suffix("").as_posix()
        result.files.append(LabelledFile(_file_name(name), image, mask))
    return result


class _Names:
    """Images by what a line of a split file may call them."""

    def __init__(self, root: Path, images: Found) -> None:
        self.root, self.images = root, images
        self.by_path = {path: name for name, paths in images.files.items() for path in paths}
        counts = Counter(path.name for path in self.by_path)
        self.by_file_name = {
            path.name: name for path, name in self.by_path.items() if counts[path.name] == 1
        }

    def find(self, line: str) -> str | None:
        """The name of an image that is given by name, with or without suffix, or by path."""
        plain = unicodedata.normalize("NFC", line)
        stripped = PurePosixPath(plain)
        without_suffix = str(stripped.with_suffix("")) if stripped.name else plain
        for name in (plain, without_suffix, self.by_file_name.get(plain)):
            if name in self.images.files:
                return name
        path = below(self.root, line)
        return self.by_path.get(path) if path is not None else None


def _same_names(kind: str, found: Found) -> Iterable[str]:
    for name, paths in found.files.items():
        if len(paths) > 1:
            yield f"{', '.join(map(str, paths))}: {kind} that share the name {name!r}"


def _file_name(name: str) -> str:
    return name.replace("/", "__")


def _suggest(text: str, images: Sequence[str], masks: Sequence[str]) -> str:
    """How to give a pattern by which masks belong to images, as the end of an error."""
    start = text.split("*")[0].split("{name}")[0]
    for image in images:
        stem = image.rpartition("/")[2]
        for mask in masks:
            before, found, after = mask.rpartition("/")[2].partition(stem)
            if found and (before or after):
                return f"try --data.masks '{start}{before}{{name}}{after}.*'"
    return "data.masks says how a mask is called, such as masks/{split}/{name}_L.png"
