"""The images that are predicted together, and the folder of what becomes of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcrf_ext.data.file_patterns import visible, walk
from deepcrf_ext.data.images import IMAGE_SUFFIXES
from deepcrf_ext.errors import InputError
from deepcrf_ext.records.result_folder import PREDICTED, ResultFolder, Task, is_result


def find_images(inputs: Sequence[Path]) -> dict[Path, str]:
    """The image files that the arguments name, each once, with the sub-folders they are from.

    A folder stands for the images in it; where it holds none, for those in its sub-folders. Hidden
    files and results of earlier runs (see `is_result`) are none of them. Raises InputError for a
    path that does not exist and for a folder without images.
    """
    found: dict[Path, str] = {}
    seen: set[str] = set()
    for path in inputs:
        if path.is_dir():
            own = (p for p in visible(path) if not p.is_dir())
            files = _images(path, own) or _images(path, walk(path))
            if not files:
                raise InputError(
                    f"{path}: no images in this folder (of {', '.join(IMAGE_SUFFIXES)}, other than "
                    "results of earlier runs)"
                )
        elif path.exists():
            files = [path]
        else:
            raise InputError(f"{path}: no such file or folder")
        for file in files:
            folder = os.path.realpath(file.parent)  # but two links to a file are two images
            place = os.path.join(folder, file.name)
            if place not in seen:
                seen.add(place)
                below = file.parent.relative_to(path) if path.is_dir() else Path()
                found[file] = below.as_posix()
    return found


def _images(top: Path, files: Iterable[Path]) -> list[Path]:
    """Those of some files below a folder that are images and no results."""
    return [
        file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and not is_result(file, top)
    ]


def output_names(images: Sequence[Path], kept: Mapping[Path, str] | None = None) -> list[str]:
    """A distinct name for each image: the one it has in `kept`; else its stem; its whole name where
    stems are the same (`a.jpg`, `a.png`); with a number behind where even those are (`x/a.jpg`,
    `y/a.jpg`). Case is ignored."""
    kept = kept or {}
    stems = Counter(path.stem.casefold() for path in images)
    taken = {name.casefold() for name in kept.values()}
    free = {stem for stem, count in stems.items() if count == 1} - taken
    taken |= free
    names: list[str] = []
    for path in images:
        name, number = path.stem, 1
        if path in kept:
            name = kept[path]
        elif path.stem.casefold() not in free:
            name = path.name
            while name.casefold() in taken:
                number += 1
                name = f"{path.name}-{number}"
            taken.add(name.casefold())
        names.append(name)
    return names


@dataclass(frozen=True)
class Targets:
    """Where the results of one image go. name: of the image in the folder."""

    name: str
    labels: Path
    overlay: Path
    marginals: Path


@dataclass(frozen=True)
class PredictedFolder:
    """Where predictions go: labels/NAME.png, overlays/NAME.png and, where they are wanted,
    marginals/NAME.npz."""

    path: Path
    marginals: bool

    def begin(
        self, images: Mapping[Path, str], settings: Mapping[str, Any], overwrite: bool
    ) -> dict[Path, Targets]:
        """Notes a run in the folder; the images, as of `find_images`, that are still to be done.

        Raises InputError where something is there that must not be replaced.
        """
        folder = ResultFolder(self.path, PREDICTED)
        targets = {
            path: self._targets(name) for path, name in _names(images, folder.names()).items()
        }
        tasks = []
        for path, target in targets.items():
            always, marginals = (target.labels, target.overlay), (target.marginals,)
            results = always + marginals if self.marginals else always
            others = () if self.marginals else marginals
            tasks.append(Task(target.name, (path,), results, others))
        todo = {task.name for task in folder.begin(tasks, settings, overwrite)}
        return {path: target for path, target in targets.items() if target.name in todo}

    def _targets(self, name: str) -> Targets:
        return Targets(
            name,
            self.path / "labels" / f"{name}.png",
            self.path / "overlays" / f"{name}.png",
            self.path / "marginals" / f"{name}.npz",
        )


def _names(images: Mapping[Path, str], earlier: Mapping[str, str]) -> dict[Path, str]:
    """The name of each image, with its sub-folder: that of an `earlier` run in the same sub-folder,
    where it has one (`ResultFolder.names`)."""
    names: dict[Path, str] = {}
    for below in dict.fromkeys(images.values()):
        paths = [path for path, folder in images.items() if folder == below]
        known = {path: Path(earlier.get(os.path.realpath(path), "")) for path in paths}
        kept = {p: n.name for p, n in known.items() if n.name and n.parent == Path(below)}
        prefix = "" if below == "." else f"{below}/"
        found = zip(paths, output_names(paths, kept), strict=True)
        names |= {path: prefix + name for path, name in found}
    return names
