"""Which image of a folder has which mask, of any model, and which true labels."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deepcrf_ext.data.base import require_folder
from deepcrf_ext.data.file_patterns import MASK_SUFFIXES, FilePattern
from deepcrf_ext.data.images import IMAGE_SUFFIXES
from deepcrf_ext.errors import InputError
from deepcrf_ext.records.result_folder import is_result


@dataclass(frozen=True)
class MaskFiles:
    """An image, its mask and, where it is known, its true labels. name: their common name."""

    name: str
    image: Path
    mask: Path
    truth: Path | None = None


def pair_masks(
    images: Path,
    masks: Path,
    truth: Path | None = None,
    patterns: tuple[str, str, str] = ("**", "**", "**"),
) -> tuple[list[MaskFiles], list[str]]:
    """Images with masks of their names, and what does not fit, a line each.

    Two files are a pair whatever their names. In folders, names are paths without suffixes, or the
    `{name}` of a pattern (see `FilePattern`). An image without a mask is left out in silence, and
    so are results of earlier runs (see `is_result`).

    Raises InputError where there is no pair.
    """
    if images.is_file() and masks.is_file():
        return [MaskFiles(images.stem, images, masks, truth)], []
    options = ("--image-pattern", "--mask-pattern", "--truth-pattern")
    suffixes = (IMAGE_SUFFIXES, MASK_SUFFIXES, MASK_SUFFIXES)
    folders = (images, masks, truth)
    found: list[dict[str, list[Path]]] = []
    for folder, option, text, known in zip(folders, options, patterns, suffixes, strict=True):
        if folder is None:
            found.append({})
            continue
        kind = option[2:].split("-")[0]
        require_folder(folder, f"a folder of {kind}s; one image goes with one mask")
        pattern = FilePattern(option, text, known)
        matched, top = pattern.find(folder, ""), pattern.folder(folder, "")
        everything = {path for paths in matched.files.values() for path in paths}
        matched.leave_out({path for path in everything if is_result(path, top)})
        found.append(matched.files)
    images_found, masks_found, truth_found = found
    masked = {os.path.realpath(path) for paths in masks_found.values() for path in paths}
    images_found = {
        name: [p for p in paths if os.path.realpath(p) not in masked] or paths
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
    if not listed:
        return f"no {noun}s"
    shown = ", ".join(listed[:3]) + ", …" * (len(listed) > 3)
    return f"{len(listed)} {noun}{'s' * (len(listed) > 1)} ({shown})"
