"""Reading every file of a data set once, before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from deepcrf_ext.data.base import (
    FileDataset,
    FileReport,
    LabelledFile,
    SegmentationDataset,
    count_labels,
    listed,
)
from deepcrf_ext.data.reduced import Reduced, whole
from deepcrf_ext.errors import InputError
from deepcrf_ext.progress import Progress
from deepcrf_ext.whole_files import write_text

FORMAT = 4  # raise it when the way that files are read changes
Stamp = list[int]  # size and time of change of the image, then of the mask


def check_files(dataset: Dataset[Any]) -> list[str]:
    """Reads all files of a data set and lists what cannot be used, each with the file it is about,
    after what does not fit together (`FileDataset.problems`, `FileDataset.doubts`).

    Files are read in parallel. Good ones are remembered in the user's cache folder by path, size
    and time of change, so that a second call reads only the others. Data sets that are
    not files (`scenes`, those of other libraries) have no problems here.

    Args:
        dataset: a split, as `open_dataset` gives it; a `Reduced` one is checked where it takes
            images.
    """
    return problems_of(dataset, report_files(dataset))


def refuse_bad_files(*datasets: SegmentationDataset) -> list[list[FileReport]]:
    """Raises InputError naming everything that `check_files` finds, while progress is shown.

    Returns what reading gave, file by file; nothing for a data set that is no files.
    """
    with Progress(None, "check", "file") as shown:
        reports = [report_files(dataset, shown.update) for dataset in datasets]
    found = zip(datasets, reports, strict=True)
    problems = [problem for dataset, own in found for problem in problems_of(dataset, own)]
    if problems:
        raise InputError(listed(list(dict.fromkeys(problems))))
    return reports


def problems_of(dataset: Dataset[Any], reports: Sequence[FileReport]) -> list[str]:
    """What cannot be used of a data set, by the reports of its files: a line each."""
    inner = whole(dataset)
    if not isinstance(inner, FileDataset):
        return []
    files = [report.problem for report in reports if report.problem is not None]
    return [*inner.problems, *inner.doubts(reports), *files]


def report_files(
    dataset: Dataset[Any], progress: Callable[[int], object] | None = None
) -> list[FileReport]:
    """`check_files` with sizes and labels of the files that can be used.

    progress: called with 1 after each file.
    """
    inner = whole(dataset)
    if not isinstance(inner, FileDataset):
        return []
    files: Sequence[LabelledFile] = inner.files
    if isinstance(dataset, Reduced):
        files = [files[index] for index in dataset.indices]
    memory = _Memory(inner.coding)
    reports = []
    try:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for report in threads.map(lambda file: _report(inner, file, memory), files):
                reports.append(report)
                if progress is not None:
                    progress(1)
    finally:  # what was read before Ctrl-C need not be read again
        memory.write()
    return reports


def _report(dataset: FileDataset, file: LabelledFile, memory: _Memory) -> FileReport:
    stamp = _stamp(file)
    known = memory.find(file, stamp)
    if known is not None:
        return known
    try:
        sample = dataset.read(file)
        details = dataset.details(file)
    except InputError as error:
        return FileReport(file, str(error))
    counts = count_labels(sample.labels)
    return memory.keep(stamp, FileReport(file, None, sample.labels.shape, counts, **details))


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
    """The reports of good files from earlier calls, in one file for each way to read labels.

    Where that file cannot be read or written, nothing is remembered.
    """

    def __init__(self, coding: str) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        digest = hashlib.sha256(coding.encode()).hexdigest()[:24]
        self.path = Path(base) / "deepcrf_ext" / "checked-files" / f"{digest}.json"
        self.entries: dict[str, list[Any]] = {}
        self.changed = False
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(content, dict) and content.pop("format", None) == FORMAT:
            self.entries = content

    def find(self, file: LabelledFile, stamp: Stamp | None) -> FileReport | None:
        """The report of an image and a mask that were good and have not changed since."""
        entry = self.entries.get(self._key(file))
        if stamp is None or entry is None or entry[0] != stamp:
            return None
        _, (height, width), counts, palette, turned = entry
        by_label, by_index = (
            {int(key): value for key, value in found.items()} for found in (counts, palette)
        )
        return FileReport(file, None, (height, width), by_label, by_index, turned)

    def keep(self, stamp: Stamp | None, report: FileReport) -> FileReport:
        """Remembers a report and returns it."""
        if stamp is not None:
            kept = [stamp, report.size, report.counts, report.palette, report.turned]
            self.entries[self._key(report.file)] = kept
            self.changed = True
        return report

    def write(self) -> None:
        """Writes what was added, whole or not at all."""
        if not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"format": FORMAT, **self.entries}))
        except OSError:
            return

    @staticmethod
    def _key(file: LabelledFile) -> str:
        paths: Iterator[str] = (str(p.absolute()) if p else "" for p in (file.image, file.labels))
        return "|".join(paths)
