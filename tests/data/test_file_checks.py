"""Checks of all files: every bad one listed, good ones remembered until they change."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from own_data import add_pair, source, write
from PIL import Image

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


def test_what_was_read_before_an_interruption_is_remembered(
    dataset: FileDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report_files(dataset, interrupt)
    read: list[str] = []
    original = FileDataset.read
    monkeypatch.setattr(
        FileDataset, "read", lambda self, file: read.append(file.name) or original(self, file)
    )
    check_files(dataset)
    assert len(read) < 5


@pytest.mark.parametrize(
    ("turn", "side", "turned"),
    [
        (1, 4, False),
        (2, 6, True),
        (3, 6, True),
        (4, 6, True),
        (5, 4, True),
        (6, 4, True),
        (6, 6, False),
    ],
)
def test_images_that_exif_turns_beside_masks_of_a_size_that_fits_either_way(
    tmp_path: Path, turn: int, side: int, turned: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    photograph = Image.fromarray(np.zeros((4, side, 3), np.uint8))
    for name in ("images", "masks"):
        (tmp_path / name / "t").mkdir(parents=True)
    photograph.save(tmp_path / "images/t/a.jpg", exif=exif)
    upright = np.zeros((side, 4) if turn == 6 else (4, side), np.uint8)
    write(tmp_path / "masks/t/a.png", upright)
    opened = open_dataset(source(root=tmp_path, classes=("a", "b")), split="t")
    for _ in range(2):  # the second time remembered
        assert [report.turned for report in report_files(opened)] == [turned]
    Image.fromarray(upright).save(tmp_path / "masks/t/a.png", exif=exif)
    if turned:  # with the tag, it is turned too
        assert [report.turned for report in report_files(opened)] == [False]
