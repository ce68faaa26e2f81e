"""Patterns of paths: which files below a folder belong to a split, and how each is called."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from deepcrf_ext.data.arrays import ARRAY_SUFFIXES
from deepcrf_ext.data.images import IMAGE_SUFFIXES
from deepcrf_ext.errors import InputError

MASK_SUFFIXES = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
_TOKEN = re.compile(r"\{name\}|\*\*/?|\*|\?|[^*?{]+|\{")
_EXPRESSIONS = {
    "{name}": "(?P=name)",  # but the first one, which gives the name
    "**/": "(?:.*/)?",
    "**": ".*",
    "*": "[^/]*",
    "?": "[^/]",
}
_WILD = re.compile(r"[*?]|\{name\}")


@dataclass
class Found:
    """The files of a pattern: several where they share a name. others: files that are no images."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)

    def leave_out(self, paths: set[Path]) -> None:
        """Takes files out, and names that no file is left of."""
        kept = {name: [p for p in own if p not in paths] for name, own in self.files.items()}
        self.files = {name: own for name, own in kept.items() if own}


@dataclass(frozen=True)
class FilePattern:
    """A path with placeholders, below a root or absolute.

    `{split}` is the split. `{name}` is the name of an image, sub-folders included; `*` and `?` are
    parts of a file name and `**` is any folders. Where there is no `{name}`, a file is called by
    its path below the folder that the placeholders begin in, without its suffix. Files have one
    of `suffixes` where the pattern gives none, in any case. Names compare in one Unicode form, as
    file systems differ in how they spell accents.

    Raises InputError, naming `option`, for a pattern that matches only one path.
    """

    option: str
    text: str
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES

    def __post_init__(self) -> None:
        if not _WILD.search(self.text) or not self.text.strip("/"):
            raise InputError(
                f"{self.option}: got {self.text!r}, must hold {{name}}, * or **, such as "
                "images/{split}/** or masks/{split}/{name}_L.png"
            )

    @property
    def has_split(self) -> bool:
        """Whether splits differ in their files."""
        return "{split}" in self.text

    def folder(self, root: Path, split: str) -> Path:
        """The folder that all files are below."""
        return root.joinpath(*self._divided(split)[0])

    def find(self, root: Path, split: str) -> Found:
        """The files of a split. Files and folders whose names begin with a dot are left out."""
        folder, rest = self._divided(split)
        base = root.joinpath(*folder)
        suffix = PurePosixPath(rest).suffix
        fixed = suffix if not _WILD.search(suffix) else ""
        stem = rest.removesuffix(fixed)
        named = re.compile(f"{self._expression(stem)}(?i:{re.escape(fixed)})")
        found = Found()
        for path in walk(base):
            inner = unicodedata.normalize("NFC", path.relative_to(base).as_posix())
            match = named.fullmatch(inner)
            if match is None:
                continue
            if path.suffix.lower() not in (*self.suffixes, fixed.lower()):
                found.others.append(path)
                continue
            name = match["name"] if "name" in named.groupindex else inner
            if "name" not in named.groupindex:
                name = str(PurePosixPath(inner).with_suffix(""))
            found.files.setdefault(name, []).append(path)
        return found

    def _divided(self, split: str) -> tuple[tuple[str, ...], str]:
        """The folders before the first placeholder, and what follows, for a split."""
        text = self.text
        if text.endswith("**"):
            text += "/*"
        elif text.endswith("{name}"):
            text += ".*"
        parts = PurePosixPath(text.replace("{split}", split)).parts
        first = next(index for index, part in enumerate(parts) if _WILD.search(part))
        return parts[:first], "/".join(parts[first:])

    @staticmethod
    def _expression(rest: str) -> str:
        tokens = _TOKEN.findall(unicodedata.normalize("NFC", rest))
        pieces = [_EXPRESSIONS.get(token, re.escape(token)) for token in tokens]
        if "{name}" in tokens:
            pieces[tokens.index("{name}")] = "(?P<name>.+)"
        return "".join(pieces)


def find_splits(root: Path, text: str) -> list[str]:
    """What `{split}` may stand for in a pattern, by the files and folders that are there."""
    parts = PurePosixPath(text).parts
    index = next((i for i, part in enumerate(parts) if "{split}" in part), None)
    if index is None or any(_WILD.search(part) for part in parts[:index]):
        return []
    before, after = parts[index].split("{split}", 1)
    folder = root.joinpath(*parts[:index])
    if not folder.is_dir():
        return []
    names = [path.name for path in visible(folder) if path.is_dir() or index + 1 == len(parts)]
    splits = {
        name[len(before) : len(name) - len(after)]
        for name in names
        if name.startswith(before) and name.endswith(after) and len(name) > len(before + after)
    }
    usual = [name for name in ("train", "val", "test") if name in splits]
    return [*usual, *sorted(splits - set(usual))]


def visible(folder: Path) -> list[Path]:
    """What is in a folder, in order, without what is hidden: .DS_Store, ._a.png.

    Raises OSError for one that cannot be read.
    """
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(paths, key=lambda path: path.name)


def walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All visible files below a folder, in order, through links to folders too, where these do not
    lead back to one `above`. Nothing where there is no such folder."""
    real = os.path.realpath(folder)
    if real in above or not folder.is_dir():
        return
    folders = []
    for path in visible(folder):
        if path.is_dir():
            folders.append(path)
        else:
            yield path
    for path in folders:
        yield from walk(path, above | {real})


def describe_folders(root: Path) -> str:
    """Which folders below a root hold how many images, in one line for an error."""
    counts = Counter(
        path.parent.relative_to(root).as_posix()
        for path in walk(root)
        if path.suffix.lower() in IMAGE_SUFFIXES
    )
    if not counts:
        return f"{root} holds no images"
    named = [f"{folder} ({count})" for folder, count in list(counts.items())[:12]]
    more = f" and {len(counts) - 12} more folders" if len(counts) > 12 else ""
    return f"{root} holds images in {', '.join(named)}{more}"
