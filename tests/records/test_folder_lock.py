"""Two runs that would write into one folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepcrf_ext.errors import InputError
from deepcrf_ext.records.folder_lock import lock_folder, locked
from deepcrf_ext.records.result_folder import ResultFolder, Task


def test_a_folder_is_one_runs_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(InputError, match=r"output: .* is being written by another process"):
            lock_folder(tmp_path)
        with locked(tmp_path.parent):
            pass
    os.close(lock_folder(tmp_path))


def test_results_of_two_runs_do_not_mix(tmp_path: Path) -> None:
    """While the first one goes on; its folder is free once it is done with."""
    task = Task("a", (tmp_path / "a.png",), (tmp_path / "out" / "a.png",))
    first, second = (ResultFolder(tmp_path / "out", "record.json") for _ in range(2))
    assert first.begin([task], {}, overwrite=False) == [task]
    record = (tmp_path / "out" / "record.json").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="another process"):
            second.begin([task], {}, overwrite)
    assert (tmp_path / "out" / "record.json").read_bytes() == record
    del first
    assert second.begin([task], {}, overwrite=False) == [task]
