"""Folders of results that a stopped run goes on with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from deepcrf_ext.errors import InputError
from deepcrf_ext.records.folder_lock import lock_folder, locked
from deepcrf_ext.records.result_folder import (
    PREDICTED,
    REFINED,
    ResultFolder,
    Task,
    is_result,
)

SETTINGS = {"alpha": 0.5, "scales": (1.0, 2.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def begin(
    folder: Path,
    tasks: Sequence[Task],
    settings: Mapping[str, Any] = SETTINGS,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
) -> list[Task]:
    """What a run that ends at once has to do."""
    return ResultFolder(folder, "record.json").begin(tasks, settings, overwrite, inputs)


def names(folder: Path) -> dict[str, str]:
    return ResultFolder(folder, "record.json").names()


def task(root: Path, name: str, source: str | None = None) -> Task:
    """What is made of a file of that name, or of another."""
    path = root / (source or f"{name}.jpg")
    path.touch()
    return Task(name, (path,), (root / "out" / f"{name}.png", root / "out" / f"{name}.npz"))


def finish(*tasks: Task) -> None:
    for path in (path for task in tasks for path in task.results):
        path.write_bytes(b"done")


def age(nanoseconds: int, *paths: Path) -> None:
    """Makes files that much older (or, below 0, newer) than they are."""
    for path in paths:
        changed = path.stat().st_mtime_ns - nanoseconds
        os.utime(path, ns=(changed, changed))


def test_what_is_finished_is_not_done_again(folder: Path, tmp_path: Path) -> None:
    a, b = task(tmp_path, "a"), task(tmp_path, "b")
    assert begin(folder, [a, b]) == [a, b]
    finish(a)
    b.results[0].touch()  # one of two
    assert begin(folder, [a, b]) == [b]
    finish(b)
    assert begin(folder, [a, b]) == []
    age(-1_000_000_000, a.sources[0])
    assert begin(folder, [a, b]) == [a], "its source has changed since"
    a.sources[0].unlink()
    assert begin(folder, [a, b]) == [], "there is no other to do it of"


def test_a_result_as_old_as_its_source_is_finished(folder: Path, tmp_path: Path) -> None:
    """On file systems whose clocks are coarse."""
    a = task(tmp_path, "a")
    begin(folder, [a])
    finish(a)
    for path in (*a.sources, *a.results):
        os.utime(path, ns=(10**18, 10**18))
    assert begin(folder, [a]) == []


def test_overwriting_begins_anew_and_goes_on(folder: Path, tmp_path: Path) -> None:
    a, b = task(tmp_path, "a"), task(tmp_path, "b")
    begin(folder, [a, b])
    finish(a, b)
    age(1_000_000_000, *a.results, *b.results)
    other = {**SETTINGS, "alpha": 0.75}
    assert begin(folder, [a, b], other, overwrite=True) == [a, b]
    finish(a)
    assert begin(folder, [a, b], other) == [b], "b is of other settings still"
    finish(b)
    assert begin(folder, [a, b], other) == []
    age(1_000_000_000, *a.results, *b.results)
    assert begin(folder, [a, b], other, overwrite=True) == [a, b]


def test_results_of_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    a = task(tmp_path, "a")
    begin(folder, [a])
    for settings, message in (
        ({**SETTINGS, "alpha": 0.75}, "alpha was 0.5, is 0.75"),
        ({**SETTINGS, "flip": True}, "flip was None, is True"),
        ({"scales": (1.0, 2.0)}, "alpha was 0.5, is None"),
    ):
        with pytest.raises(InputError, match=f"--output: .*out holds results of .*{message}"):
            begin(folder, [a], settings)
    begin(folder, [a])


def test_results_of_other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    a = task(tmp_path, "a")
    folder.mkdir()
    finish(a)
    with pytest.raises(InputError, match="a.png exists; choose another folder, or give --overwr"):
        begin(folder, [a])
    begin(folder, [a], SETTINGS, overwrite=True)
    finish(a)
    with pytest.raises(InputError, match=rf"a.png, of {tmp_path}/a.jpg, exists"):
        begin(folder, [task(tmp_path, "a", "x.jpg")])
    b = task(tmp_path, "b")
    assert begin(folder, [a, b]) == [b]
    both = Task("c", (tmp_path / "a.jpg", tmp_path / "b.jpg"), (folder / "c.png",))
    begin(folder, [both])
    both.results[0].touch()
    with pytest.raises(InputError, match=rf"of {tmp_path}/a.jpg and {tmp_path}/b.jpg, exists"):
        begin(folder, [task(tmp_path, "c")])


def test_inputs_are_never_replaced(folder: Path, tmp_path: Path) -> None:
    a = task(tmp_path, "a")
    (tmp_path / "link").symlink_to(tmp_path)
    for result, inputs in (
        (tmp_path / "link" / "a.jpg", []),
        (tmp_path / "truth.png", [tmp_path / "link" / "truth.png"]),
    ):
        with pytest.raises(InputError, match=f"--output: {result} is an input; choose another"):
            begin(folder, [Task("a", a.sources, (result,))], SETTINGS, True, inputs)
        with pytest.raises(InputError, match=f"--output: {result} is an input; choose another"):
            begin(folder, [Task("a", a.sources, (), (result,))], SETTINGS, True, inputs)
    assert not folder.exists(), "nothing is noted"


def test_files_of_others_are_not_removed(folder: Path, tmp_path: Path) -> None:
    a, b = task(tmp_path, "a"), task(tmp_path, "b")
    finished = Task("a", a.sources, a.results[:1], a.results[1:])
    begin(folder, [a])
    finish(a)
    assert begin(folder, [finished]) == [], "what is removed is noted as ours"
    b.results[1].write_bytes(b"of another")
    with pytest.raises(InputError, match="b.npz exists; choose another folder, or give --overwr"):
        begin(folder, [Task("b", b.sources, b.results[:1], b.results[1:])])


def test_names_are_those_of_one_file_each(folder: Path, tmp_path: Path) -> None:
    assert names(folder) == {}
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    a, b = task(tmp_path, "a", "link.jpg"), task(tmp_path, "b")
    pair = Task("pair", (tmp_path / "x", tmp_path / "y"), ())
    begin(folder, [a, b, pair])
    assert names(folder) == {f"{tmp_path}/a.jpg": "a", f"{tmp_path}/b.jpg": "b"}
    begin(folder, [Task("again", b.sources, ())])
    assert names(folder) == {f"{tmp_path}/a.jpg": "a"}, "b.jpg has two"


@pytest.mark.parametrize(
    ("content", "message"), [("{", "record.json is damaged"), ("[3]", "is of something else")]
)
def test_a_damaged_record_is_named(folder: Path, content: str, message: str) -> None:
    folder.mkdir()
    (folder / "record.json").write_text(content)
    for use in (names, lambda folder: begin(folder, [])):
        with pytest.raises(InputError, match=f"--output: .*{message}"):
            use(folder)


def test_one_process_at_a_time_writes_to_a_folder(folder: Path, tmp_path: Path) -> None:
    a = task(tmp_path, "a")
    folder.mkdir()
    with locked(folder), pytest.raises(InputError, match="output: .*out is being written by an"):
        begin(folder, [a], overwrite=True)
    assert [*folder.iterdir()] == []
    assert begin(folder, [a]) == begin(folder, [a]) == [a], "one after another in this process"
    with pytest.raises(InputError, match="is being written by another process"):
        lock_folder(folder)


def test_links_that_lead_to_themselves(folder: Path, tmp_path: Path) -> None:
    """They are as good as files that are not there."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    a = Task("a", (tmp_path / "loop",), (folder / "a.png",))
    assert begin(folder, [a]) == [a]
    with pytest.raises(InputError, match="loop cannot be written"):
        begin(tmp_path / "loop", [Task("a", (tmp_path / "a",), (tmp_path / "loop" / "a.png",))])


@pytest.mark.parametrize("record", [PREDICTED, REFINED])
def test_results_are_told_by_the_record_beside_them(tmp_path: Path, record: str) -> None:
    run = tmp_path / "photos" / "run"
    run.mkdir(parents=True)
    made = ("labels/a.png", "overlays/deep/a.png", "marginals/a.npz", "legend.png")
    assert not any(is_result(run / name, tmp_path) for name in made), "without a record"
    (run / record).touch()
    assert all(is_result(run / name, top) for name in made for top in (tmp_path, run))
    assert not is_result(run / "a.png", tmp_path)
    assert not is_result(run / "labels" / "a.png", run / "labels"), "a folder that is asked for"


def test_folders_of_results_are_made_before_any_is(folder: Path, tmp_path: Path) -> None:
    deep = Task("a", (tmp_path / "a.jpg",), (folder / "labels" / "x" / "a.png",))
    begin(folder, [deep])
    assert (folder / "labels" / "x").is_dir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "labels").touch()
    blocked = Task("a", deep.sources, (tmp_path / "other" / "labels" / "a.png",))
    with pytest.raises(InputError, match="output: .*labels cannot be written .it is no folder"):
        begin(tmp_path / "other", [blocked])
