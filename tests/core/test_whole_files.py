"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepcrf_ext.errors import InputError
from deepcrf_ext.whole_files import make_folder, write_json, write_text, write_whole


def test_an_earlier_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"earlier")
    with write_whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"earlier"
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError), write_whole(path) as file:
        file.write("text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file grows beyond 1000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_by_the_file(tmp_path: Path, small_disk: None) -> None:
    path = tmp_path / "weights"
    write_text(path, "earlier")
    with pytest.raises(OSError, match=f"too large: '{path}'"):
        write_text(path, "x" * 5000)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_opened_is_told_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/no/weights'"):
        write_text(tmp_path / "no" / "weights", "x")


@pytest.mark.parametrize("name", ["x" * 143, "é" * 70, "x" * 255])
def test_names_may_be_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "ä")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == "ä".encode()


def test_json_holds_no_number_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"iou": 0.5, "f1": None})
    assert json.loads(path.read_text()) == {"iou": 0.5, "f1": None}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"iou": float("nan")})
    assert json.loads(path.read_text())["iou"] == 0.5


def test_a_disk_that_is_read_only_is_told_by_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On such a one even files that are not there cannot be deleted."""

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_text(tmp_path / "a.txt", "x")
    assert caught.value.filename == str(tmp_path / "a.txt")


@pytest.mark.parametrize("kind", ["file", "broken link", "link to itself"])
def test_what_is_no_folder_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "file":
        path.touch()
    else:
        path.symlink_to(path if kind == "link to itself" else tmp_path / "gone" / "folder")
    with pytest.raises(InputError) as caught:
        make_folder(path)
    told = f"output: {path} cannot be written (it is no folder); choose another folder"
    assert str(caught.value) == told
