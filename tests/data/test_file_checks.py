"""Checks of all files: every bad one listed, good ones remembered until they change."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from own_data import add_pair, source, write

from deepcrf_ext.data import FolderDataset, check_files, open_dataset
from deepcrf_ext.data.base import FileDataset
from deepcrf_ext.data.file_checks import report_files
from deepcrf_ext.data.reduced import Reduced

LABELS = np.array([[0, 1], [1, 255]], np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> FileDataset:
    for index in range(5):
        add_pair(
            tmp_path / f"images/train/{index}.png", tmp_path / f"masks/train/{index}.png", LABELS
        )
    opened = open_dataset(source(root=tmp_path, classes=("a", "b")), split="train")
    assert isinstance(opened, FolderDataset)
    return opened


def test_every_bad_file_is_listed(dataset: FileDataset, tmp_path: Path) -> None:
    assert check_files(dataset) == []
    (tmp_path / "images/train/0.png").write_bytes(b"broken")
    write(tmp_path / "masks/train/1.png", np.full((2, 2), 9, np.uint8))
    write(tmp_path / "masks/train/2.png", np.zeros((3, 2), np.uint8))
    (tmp_path / "masks/train/4.png").unlink()
    problems = check_files(dataset)
    for problem, part in zip(
        problems, ("0.png: cannot be read", "holds 9", "2x3 pixels", "no such file"), strict=True
    ):
        assert str(tmp_path) in problem
        assert part in problem
    assert check_files(Reduced(dataset, 1)) == problems[2:3]  # its middle image


def test_reports(dataset: FileDataset) -> None:
    ticks: list[int] = []
    for _ in range(2):
        reports = report_files(dataset, ticks.append)
        assert {report.size for report in reports} == {(2, 2)}
        assert [report.counts for report in reports] == [{0: 1, 1: 2, 255: 1}] * 5
    assert ticks == [1] * 10


def test_only_what_has_changed_is_read_again(
    dataset: FileDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = FileDataset.read
    monkeypatch.setattr(
        FileDataset, "read", lambda self, file: read.append(file.name) or original(self, file)
    )
    check_files(dataset)
    assert sorted(read) == list("01234")
    read.clear()
    check_files(dataset)
    assert read == []
    os.utime(tmp_path / "masks/train/3.png", ns=(1, 1))
    check_files(dataset)
    assert read == ["3"]
    read.clear()
    other = open_dataset(source(root=tmp_path, classes=("a", "b", "c")), split="train")
    check_files(other)
    assert sorted(read) == list("01234")


def test_a_memory_that_is_damaged_or_cannot_be_written(dataset: FileDataset, cache: Path) -> None:
    check_files(dataset)
    (file,) = (cache / "deepcrf_ext" / "checked-files").iterdir()
    for content in ("", "[]", "{}", '{"format": 0}'):
        file.write_text(content)
        assert check_files(dataset) == []
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")
    assert check_files(dataset) == []


def test_data_sets_that_are_no_files_have_no_problems() -> None:
    assert check_files(open_dataset("scenes", None, "val")) == []
