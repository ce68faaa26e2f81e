"""Reading every file of a data set once, before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from deepcrf_ext.data.base import FileDataset, LabelledFile, SegmentationDataset, listed
from deepcrf_ext.data.reduced import Reduced, whole
from deepcrf_ext.errors import InputError
from deepcrf_ext.progress import Progress

FORMAT = 2  # raise it when the way that files are read changes
Stamp = list[int]  # size and time of change of the image, then of the mask


@dataclass(frozen=True)
class FileReport:
    """What reading an image and its mask gave.

    problem: why they cannot be used, naming the file; None where they can.
    size: (height, width) in pixels; None with a problem.
    counts: pixels by label, 255 among them; empty with a problem.
    """

    file: LabelledFile
    problem: str | None
    size: tuple[int, int] | None
    counts: dict[int, int]


def check_files(
    dataset: Dataset[Any], progress: Callable[[int], object] | None = None
) -> list[str]:
    """Reads all files of a data set and lists what cannot be used, each with the file it is about,
    after what does not fit together (`FileDataset.problems`).

    Files are read in parallel. Good ones are remembered in the user's cache folder by path, size
    and time of change, so that a second call reads only the others. Data sets that are
    not files (`scenes`, those of other libraries) have no problems here.

    Args:
        dataset: a split, as `open_dataset` gives it; a `Reduced` one is checked where it takes
            images.
        progress: called with 1 after each file.
    """
    return _problems(dataset, report_files(dataset, progress))


def refuse_bad_files(*datasets: SegmentationDataset) -> list[np.ndarray | None]:
    """Raises InputError naming everything that `check_files` finds, while progress is shown.

    Returns how many pixels of a data set have each label, int64 [256]; None for one that is no
    files.
    """
    problems: list[str] = []
    pixels: list[np.ndarray | None] = []
    with Progress(None, "check", "file") as shown:
        for dataset in datasets:
            reports = report_files(dataset, shown.update)
            problems += _problems(dataset, reports)
            counts = np.zeros(256, np.int64)
            for report in reports:
                for label, count in report.counts.items():
                    counts[label] += count
            pixels.append(counts if isinstance(whole(dataset), FileDataset) else None)
    if problems:
        raise InputError(listed(list(dict.fromkeys(problems))))
    return pixels


def _problems(dataset: Dataset[Any], reports: Sequence[FileReport]) -> list[str]:
    inner = whole(dataset)
    apart = inner.problems if isinstance(inner, FileDataset) else ()
    return [*apart, *(report.problem for report in reports if report.problem is not None)]


def report_files(
    dataset: Dataset[Any], progress: Callable[[int], object] | None = None
) -> list[FileReport]:
    """`check_files` with sizes and labels of the files that can be used."""
    inner = whole(dataset)
    if not isinstance(inner, FileDataset):
        return []
    files: Sequence[LabelledFile] = inner.files
    if isinstance(dataset, Reduced):
        files = [files[index] for index in dataset.indices]
    memory = _Memory(inner.coding)
    reports = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for report in threads.map(lambda file: _report(inner, file, memory), files):
            reports.append(report)
            if progress is not None:
                progress(1)
    memory.write()
    return reports


def _report(dataset: FileDataset, file: LabelledFile, memory: _Memory) -> FileReport:
    stamp = _stamp(file)
    known = memory.find(file, stamp)
    if known is not None:
        return known
    try:
        sample = dataset.read(file)
    except InputError as error:
        return FileReport(file, str(error), None, {})
    counts = np.bincount(sample.labels.ravel(), minlength=256)
    height, width = sample.labels.shape
    found = {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    return memory.keep(stamp, FileReport(file, None, (height, width), found))


def _stamp(file: LabelledFile) -> Stamp | None:
    """None for a file that is not there."""
    stamp = []
    for path in (file.image, file.labels):
        if path is not None:
            try:
                status = path.stat()
            except OSError:
                return None
            stamp += [status.st_size, status.st_mtime_ns]
    return stamp


class _Memory:
    """Good files of earlier calls, in a file for each way to read labels.

    A memory that cannot be read or written is one that remembers nothing.
    """

    def __init__(self, coding: str) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        digest = hashlib.sha256(coding.encode()).hexdigest()[:24]
        self.path = Path(base) / "deepcrf_ext" / "checked-files" / f"{digest}.json"
        self.entries: dict[str, list[Any]] = {}
        self.changed = False
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        if isinstance(content, dict) and content.pop("format", None) == FORMAT:
            self.entries = content

    def find(self, file: LabelledFile, stamp: Stamp | None) -> FileReport | None:
        """The report of an image and a mask that were good and have not changed since."""
        entry = self.entries.get(self._key(file))
        if stamp is None or entry is None or entry[0] != stamp:
            return None
        _, (height, width), counts = entry
        labels = {int(label): count for label, count in counts.items()}
        return FileReport(file, None, (height, width), labels)

    def keep(self, stamp: Stamp | None, report: FileReport) -> FileReport:
        """Remembers a report and returns it."""
        if stamp is not None:
            counts = {str(label): count for label, count in report.counts.items()}
            self.entries[self._key(report.file)] = [stamp, report.size, counts]
            self.changed = True
        return report

    def write(self) -> None:
        """Writes what was added, whole or not at all."""
        if not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent)
            with os.fdopen(handle, "w") as file:
                json.dump({"format": FORMAT, **self.entries}, file)
            os.replace(name, self.path)
        except OSError:
            return

    @staticmethod
    def _key(file: LabelledFile) -> str:
        paths: Iterator[str] = (str(p.absolute()) if p else "" for p in (file.image, file.labels))
        return "|".join(paths)
