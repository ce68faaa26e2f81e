"""Two processes that would write into one folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepcrf_ext.errors import InputError
from deepcrf_ext.records.folder_lock import lock_folder, locked


def test_a_folder_is_one_runs_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(InputError, match=r"output: .* is being written by another process"):
            lock_folder(tmp_path)
        with locked(tmp_path.parent):
            pass
    os.close(lock_folder(tmp_path))
