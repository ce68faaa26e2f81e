"""Folders of results that a stopped run goes on with."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcrf_ext.errors import InputError
from deepcrf_ext.records.folder_lock import lock_folder
from deepcrf_ext.whole_files import make_folder, write_json

PREDICTED, REFINED = "predict.json", "refine.json"  # records of the commands
_RESULTS = {"labels", "overlays", "marginals", "probabilities", "legend.png"}  # beside them
_NOTES = ("sources", "begun")  # of a record, beside the settings
_LOCKS: dict[str, int] = {}  # of the folders that this process writes to, until it ends


@dataclass(frozen=True)
class Task:
    """Results to make from some files. name: unique within the folder. removed: what an earlier run
    may have made and this one removes."""

    name: str
    sources: tuple[Path, ...]
    results: tuple[Path, ...]
    removed: tuple[Path, ...] = ()

    def touched(self) -> tuple[Path, ...]:
        """The files that are replaced or removed."""
        return self.results + self.removed

    def places(self) -> list[str]:
        """The sources without links, as the record names them."""
        return [os.path.realpath(path) for path in self.sources]

    def is_finished(self, begun: int) -> bool:
        """Whether all results are there and none is older than a source or than `begun`, in ns."""
        newest = max([begun, *(path.stat().st_mtime_ns for path in self.sources if path.exists())])
        return all(path.exists() and path.stat().st_mtime_ns >= newest for path in self.results)


def is_result(path: Path, top: Path) -> bool:
    """Whether a file below a folder is what predict or refine made, by their record beside it."""
    folder = top
    for part in path.relative_to(top).parts:
        if part in _RESULTS and any((folder / name).exists() for name in (PREDICTED, REFINED)):
            return True
        folder /= part
    return False


class ResultFolder:
    """Results that are written whole or not at all, with a record of the settings and the files
    that they are made of, so that a later run passes over what is finished, and over nothing else.

    From `begin` on, no other process begins a run there until this one ends.

    Args:
        path: the folder.
        record: the name of the record, a JSON file in it.
    """

    def __init__(self, path: Path, record: str) -> None:
        self.path, self.record = path, path / record

    def names(self) -> dict[str, str]:
        """The name of each result of an earlier run, by the path of the file that it was made from.

        Left out are results of several files, and files with several results.
        """
        noted: dict[str, list[str]] = self._former().get("sources", {})
        sources = Counter(place for places in noted.values() for place in places)
        return {of[0]: name for name, of in noted.items() if len(of) == 1 and sources[of[0]] == 1}

    def begin(
        self,
        tasks: Sequence[Task],
        settings: Mapping[str, Any],
        overwrite: bool,
        inputs: Iterable[Path] = (),
    ) -> list[Task]:
        """Records a run in the folder and returns the tasks that are still to be done.

        settings: what the results depend on, plain values by name. overwrite: do all tasks again;
        if such a run is stopped, the next one goes on where it was. inputs: further files that no
        result may replace.

        Makes the folders of the results. Raises InputError where one cannot be written, where an
        input would be replaced or removed, and where another process writes to the folder; and,
        unless these are to be overwritten, where the folder holds results of other settings, of
        other files under the name of a task, or files of which nothing is noted.
        """
        kept = {os.path.realpath(path) for task in tasks for path in task.sources}
        kept.update(os.path.realpath(path) for path in inputs)
        for path in (path for task in tasks for path in task.touched()):
            if os.path.realpath(path) in kept:
                raise InputError(f"--output: {path} is an input; choose another folder")
        settings = json.loads(json.dumps(settings))
        former = self._former()
        noted = former.get("sources", {})
        begun = former.get("begun", 0)
        if not overwrite:
            self._refuse_others(tasks, settings, former)
        make_folder(self.path)
        place = os.path.realpath(self.path)
        if place not in _LOCKS:
            _LOCKS[place] = lock_folder(self.path)
        for parent in {path.parent for task in tasks for path in task.results}:
            make_folder(parent)
        record = {**settings, "sources": {**noted, **{task.name: task.places() for task in tasks}}}
        if overwrite:
            self._note(record)
            begun = self.record.stat().st_mtime_ns  # by the clock of the results' times
        self._note({**record, "begun": begun})
        return [task for task in tasks if not task.is_finished(begun)]

    def _refuse_others(
        self, tasks: Sequence[Task], settings: Mapping[str, Any], former: Mapping[str, Any]
    ) -> None:
        before = {key: value for key, value in former.items() if key not in _NOTES}
        for key in {**settings, **before} if former else ():
            if before.get(key) != settings.get(key):
                raise InputError(
                    f"--output: {self.path} holds results of other settings ({key} was "
                    f"{before.get(key)}, is {settings.get(key)}); choose another folder, or give "
                    "--overwrite to replace them"
                )
        noted = former.get("sources", {})
        for task in tasks:
            present = next((path for path in task.touched() if path.exists()), None)
            if present is None or noted.get(task.name) == task.places():
                continue
            of = "" if task.name not in noted else f", of {' and '.join(noted[task.name])},"
            raise InputError(
                f"--output: {present}{of} exists; choose another folder, or give --overwrite to "
                "replace it"
            )

    def _former(self) -> dict[str, Any]:
        """The record of the earlier run; empty where there is none."""
        if not self.record.exists():
            return {}
        try:
            former = json.loads(self.record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"--output: {self.record} is damaged ({error})") from error
        if not isinstance(former, dict):
            raise InputError(f"--output: {self.record} is of something else; choose another folder")
        return former

    def _note(self, record: Mapping[str, Any]) -> None:
        write_json(self.record, record)
