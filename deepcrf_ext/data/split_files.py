"""Split files: the images of a split by name, or pairs of an image and its mask by path."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from os.path import isfile
from pathlib import Path, PurePosixPath

from deepcrf_ext.errors import InputError
from deepcrf_ext.settings_files import read_text

_COLUMN = "images?|imgs?|masks?|labels?|annotations?|files?|names?|paths?|ids?"
_HEADER = re.compile(rf'([\s,;_"]*({_COLUMN}))+[\s,;"]*', re.IGNORECASE)


def is_header(line: str) -> bool:
    """Whether a line could name the columns of a table, as `image_path,mask_path`."""
    return _HEADER.fullmatch(line) is not None


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a split file, blank ones apart.

    Raises InputError when the file is missing, empty or not text.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such split file")
    lines = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if not lines:
        raise InputError(f"{path}: names no image")
    return lines


def below(root: Path, path: str) -> Path | None:
    """The file that a split file calls `path`, below `root`: with or without a slash before it, in
    slashes of either kind, in quotes, or after the whole path of `root`; names in any Unicode form,
    as file systems differ in how they spell accents.

    None for a path that leads out of `root`, `..` or a drive.
    """
    pure = PurePosixPath(path.strip('"').replace("\\", "/"))
    for whole in (root.absolute(), os.path.realpath(root)):
        if pure.is_relative_to(whole):
            return _inside(root, pure.relative_to(whole))
    return _inside(root, PurePosixPath(str(pure).lstrip("/")))


def _inside(root: Path, path: PurePosixPath) -> Path | None:
    if not path.parts or ".." in path.parts or "\0" in str(path) or ":" in path.parts[0]:
        return None
    if str(path).isascii():
        return root / path
    for part in path.parts:
        forms = (unicodedata.normalize(form, part) for form in ("NFC", "NFD"))
        spelt = (root / form for form in (part, *forms))
        root = next(filter(os.path.exists, spelt), root / part)
    return root


def pairs(root: Path, line: str) -> Iterator[tuple[Path, Path]]:
    """Every way to read a line as an image and a mask below `root`; names may hold spaces."""
    for gap in re.finditer(r"\s*[,;\t]\s*|\s+", line):
        image, mask = below(root, line[: gap.start()]), below(root, line[gap.end() :])
        if image is not None and mask is not None:
            yield image, mask


def existing_pair(root: Path, line: str) -> tuple[Path, Path] | None:
    """The pair of files that a line names, if both exist."""
    return next(((i, m) for i, m in pairs(root, line) if isfile(i) and isfile(m)), None)
