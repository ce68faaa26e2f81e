"""Which image of a folder has which mask: by names, or as a split file lists them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from deepcrf_ext.config.data import DataSource
from deepcrf_ext.data.base import LabelledFile
from deepcrf_ext.data.file_patterns import MASK_SUFFIXES, FilePattern, Found, describe_folders
from deepcrf_ext.data.split_files import below, existing_pair, is_header, read_lines
from deepcrf_ext.errors import InputError
from deepcrf_ext.settings_files import find_file


@dataclass
class Pairing:
    """The images of a split with their masks, and what does not fit.

    problems: one a file. left_out: files that are no images.
    """

    files: list[LabelledFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


def pair_files(root: Path, split: str, source: DataSource) -> Pairing:
    """The images of a split with their masks, whatever the classes.

    Raises InputError when no image is found, with what was found instead.
    """
    every = "**" if source.split_file else "{split}/**"
    images = FilePattern("data.images", source.images or f"images/{every}")
    masks = FilePattern("data.masks", source.masks or f"masks/{every}", MASK_SUFFIXES)
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
            problem = "does not exist"
            if folder.is_dir():
                kinds = Counter(
                    "".join(path.suffixes[-2 if path.suffix == ".gz" else -1 :]) or path.name
                    for path in files.others
                )
                named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
                problem = f"holds no {option}{named and f', but {named}'}"
            raise InputError(
                f"{folder}: {problem} (data.{option} {pattern.text!r}, split {split!r}); "
                f"{describe_folders(root)}"
            )
    return _pair_by_name(root, images, found, masks, found_masks)


def _pair_by_name(
    root: Path, pattern: FilePattern, images: Found, masks: FilePattern, found: Found
) -> Pairing:
    """By names. Where one pattern alone holds {split}, the other finds files of all splits, of
    which those that have a partner are taken."""
    result = Pairing(left_out=images.others + found.others)
    result.problems += [*_same_names("images", images), *_same_names("masks", found)]
    for name, paths in sorted(images.files.items()):
        if name in found.files:
            result.files.append(LabelledFile(_file_name(name), paths[0], found.files[name][0]))
        elif pattern.has_split or not masks.has_split:
            result.problems.append(f"{paths[0]}: image without mask")
    lonely = [name for name in found.files if name not in images.files]
    if masks.has_split or not pattern.has_split:
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
    lines = read_lines(file)
    for line in lines:
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
            if pair is None and line is lines[0] and is_header(line):
                continue
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
        own = {path: unicodedata.normalize("NFC", path.name) for path in self.by_path}
        counts = Counter(own.values())
        self.by_file_name = {
            file: self.by_path[path] for path, file in own.items() if counts[file] == 1
        }

    def find(self, line: str) -> str | None:
        """The name of an image that is given by name, with or without suffix, or by path."""
        plain = unicodedata.normalize("NFC", line.strip('"'))
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
