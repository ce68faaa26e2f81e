"""The refine command over a folder that it has written to before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from own_data import write
from PIL import Image

from deepcrf_ext.refine import main

SIZE = (24, 32)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.png", random.integers(0, 255, (*SIZE, 3), np.uint8))
        write(tmp_path / "masks" / f"{name}.png", random.integers(0, 3, SIZE, np.uint8))
    return tmp_path


def run(folders: Path, *options: str, masks: str = "masks") -> int:
    inputs = [str(folders / "images"), str(folders / masks), "--output", str(folders / "out")]
    return main([*inputs, "--dense-crf-iterations", "0", "--device", "cpu", *options])


def labels(folders: Path, name: str) -> np.ndarray:
    return np.array(Image.open(folders / "out" / "labels" / f"{name}.png"))


@pytest.mark.parametrize("changed", ["images", "masks"])
def test_files_that_changed_are_done_again(folders: Path, capsys, changed: str) -> None:
    assert run(folders) == 0
    kept = (folders / "out/labels/b.png").stat().st_mtime_ns
    shape = SIZE if changed == "masks" else (*SIZE, 3)
    new = np.random.default_rng(1).integers(0, 3, shape, np.uint8)
    write(folders / changed / "a.png", new)
    before = (folders / "out/labels/a.png").stat().st_mtime_ns
    assert run(folders) == 0
    assert "(1 of them earlier)" in capsys.readouterr().out
    assert (folders / "out/labels/a.png").stat().st_mtime_ns > before
    assert (folders / "out/labels/b.png").stat().st_mtime_ns == kept
    if changed == "masks":
        np.testing.assert_array_equal(labels(folders, "a"), new)


def test_no_probabilities_of_an_earlier_image_stay(folders: Path) -> None:
    assert run(folders, "--probabilities") == 0
    write(folders / "images" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    assert run(folders) == 0
    assert [path.name for path in (folders / "out/probabilities").iterdir()] == ["b.npz"]


def test_masks_of_another_folder_are_not_done_already(folders: Path, capsys) -> None:
    other = np.random.default_rng(2).integers(0, 3, SIZE, np.uint8)
    for name in ("a", "b"):
        write(folders / "others" / f"{name}.png", other)
    assert run(folders) == 0
    assert run(folders, masks="others") == 2
    assert "masks/a.png, exists" in capsys.readouterr().err
    assert run(folders, "--overwrite", masks="others") == 0
    np.testing.assert_array_equal(labels(folders, "b"), other)
    assert run(folders, masks="others") == 0
    assert "(2 of them earlier)" in capsys.readouterr().out


def test_files_of_somebody_else_are_not_taken_for_results(folders: Path, capsys) -> None:
    write(folders / "out" / "labels" / "a.png", np.zeros(SIZE, np.uint8))
    assert run(folders) == 2
    assert "labels/a.png exists" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["probabilities", "overlays"])
def test_results_that_are_not_wanted_are_no_files_of_somebody_else(
    folders: Path, capsys, kind: str
) -> None:
    """Those of an earlier run are removed, as they would be of another mask; these stay."""
    suffix = "npz" if kind == "probabilities" else "png"
    own = folders / "out" / kind / f"a.{suffix}"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    assert run(folders) == 2
    assert f"{kind}/a.{suffix} exists" in capsys.readouterr().err
    assert own.read_bytes() == b"mine"


def test_masks_in_the_folder_of_probabilities_stay(folders: Path, capsys) -> None:
    assert run(folders, "--probabilities") == 0
    masks = {path: path.read_bytes() for path in (folders / "out/probabilities").iterdir()}
    for more in ([], ["--overwrite"]):
        assert run(folders, *more, masks="out/probabilities") == 2
        assert "is an input; choose another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in masks} == masks


def test_a_setting_that_is_no_longer_given_is_another(folders: Path, capsys) -> None:
    assert run(folders, "--normalisation", "none") == 0
    assert run(folders) == 2
    assert "normalisation was none" in capsys.readouterr().err


@pytest.mark.parametrize("stem", ["x" * 251, "é" * 125])
def test_names_as_long_as_there_are(tmp_path: Path, stem: str) -> None:
    image = write(tmp_path / "images" / f"{stem}.png", np.full((*SIZE, 3), 90, np.uint8))
    mask = write(tmp_path / "masks" / f"{stem}.png", np.eye(*SIZE, dtype=np.uint8))
    arguments = [str(image), str(mask), "--output", str(tmp_path / "out"), "--probabilities"]
    assert main(arguments) == 0
    for folder, suffix in (("labels", "png"), ("probabilities", "npz")):
        assert [p.name for p in (tmp_path / "out" / folder).iterdir()] == [f"{stem}.{suffix}"]


def test_results_of_earlier_runs_are_no_masks(folders: Path, capsys) -> None:
    """Of any output, in the folder of the masks or of the images; but where they are asked for."""
    inputs = [str(folders / "images"), str(folders / "masks")]
    fast = ["--dense-crf-iterations", "0", "--device", "cpu"]
    for output in ("masks", "masks/fine", "images/fine", "out"):
        assert main([*inputs, "--output", str(folders / output), *fast]) == 0
        told = capsys.readouterr()
        assert "2 of 2 masks" in told.out
        assert told.err == ""
    inputs[1] += "/labels"
    assert main([*inputs, "--output", str(folders / "twice"), *fast]) == 0
    inputs[1] = str(folders / "masks")
    pattern = ["--mask-pattern", "labels/{name}.png"]
    assert main([*inputs, "--output", str(folders / "again"), *fast, *pattern]) == 0
    assert capsys.readouterr().out.count("2 of 2 masks") == 2


def test_links_that_lead_to_themselves(folders: Path, capsys) -> None:
    (folders / "images" / "c.png").symlink_to(folders / "images" / "c.png")
    (folders / "masks" / "c.png").symlink_to(folders / "masks" / "c.png")
    assert run(folders) == 1
    told = capsys.readouterr()
    assert "2 of 3 masks" in told.out
    assert "c.png: no such file" in told.err
    (folders / "loop").symlink_to(folders / "loop")
    assert run(folders, "--output", str(folders / "loop")) == 2
    assert "loop cannot be written (it is no folder)" in capsys.readouterr().err
