"""Label maps of any coding are refined, and written in theirs: indices, colours, arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.refine import main
from deepcrf_ext.tune_dense_crf import main as tune_main

H, W, K = 40, 52, 3
TRUTH = np.repeat((np.arange(W) * K // W)[None], H, 0)
WHITE_AND = np.array([(255, 255, 255), (0, 0, 255), (255, 255, 0)], np.uint8)  # as of Potsdam
CRF = ["--dense-crf-params", "{bilateral_sxy: 20, bilateral_weight: 4}", "--device", "cpu"]


def noisy(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((H, W)) < 1 / 6, rng.integers(0, K, (H, W)), TRUTH)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Images a and b."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    colours = np.array([(200, 60, 40), (40, 180, 60), (50, 70, 210)], np.uint8)
    for name in "ab":
        image = colours[TRUTH] + rng.integers(0, 12, (H, W, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write(place: Path, folder: str, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        path = place / folder / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, array)
        elif path.suffix == ".npz":
            np.savez_compressed(path, labels=array, scores=np.zeros(3))
        else:
            Image.fromarray(array).save(path)


def run(place: Path, *options: str) -> int:
    inputs = [str(place / "images"), str(place / "masks"), "--output", str(place / "out")]
    return main([*inputs, *CRF, *options])


def result(place: Path, name: str) -> Any:
    with Image.open(place / "out" / "labels" / f"{name}.png") as picture:
        return picture.mode, np.array(picture)


@pytest.mark.parametrize("truth", ["colours", "none"])
def test_colours_are_classes(place: Path, truth: str, capsys: pytest.CaptureFixture[str]) -> None:
    """White too; and what was refined earlier is scored again."""
    write(place, "masks", {f"{name}.png": WHITE_AND[noisy(i)] for i, name in enumerate("ab")})
    write(place, "truth", {f"{name}.png": WHITE_AND[TRUTH] for name in "ab"})
    options = ["--truth", str(place / "truth")] * (truth == "colours")
    for _ in range(2):
        assert run(place, *options) == 0
        printed = capsys.readouterr().out
        if options:
            before, after = (float(w) for w in printed.split("mean IoU")[1].split() if "." in w)
            assert (before < 85, after > 97) == (True, True)
        for name in "ab":
            mode, array = result(place, name)
            assert mode == "RGB"
            assert (array == WHITE_AND[TRUTH]).all(2).mean() > 0.99


@pytest.mark.parametrize("options", [["--unsure", "0"], ["--labels", "{MAP}"]])
def test_colours_that_could_be_anything(place: Path, options: list[str]) -> None:
    """Black, as in pydensecrf's example; or what a label map ignores."""
    colours = np.array([(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)
    labels = noisy(0) + 1
    labels[: H // 4] = 0
    write(place, "masks", {"a.png": colours[labels]})
    text = "{0: ignore, '#c80000': x, '#00c800': y, '#0000c8': z}"
    assert run(place, *(option.replace("{MAP}", text) for option in options)) == 0
    assert (result(place, "a")[1] == colours[TRUTH + 1]).all(2).mean() > 0.99


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16])
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_arrays_of_labels(place: Path, name: str, dtype: type) -> None:
    labels = noisy(0).astype(dtype)
    labels[:5] = 255 if dtype == np.uint8 else -1  # unsure
    write(place, "masks", {name: labels[None] if dtype == np.int16 else labels})
    options = ["--kind", "labels"] if dtype == np.uint8 else []
    assert run(place, *options) == 0
    mode, array = result(place, "a")
    assert mode == "P"
    assert (array == TRUTH).mean() > 0.99


def test_planes_of_0_and_1_are_labels_and_of_fractions_are_not(place: Path) -> None:
    front = TRUTH == 1
    write(place, "masks", {"a.npy": noisy(0) == 1, "b.npy": 0.8 * front + 0.1})
    assert run(place, "--probabilities") == 0
    for name in "ab":
        assert (result(place, name)[1] == front).mean() > 0.97
    with np.load(place / "out" / "probabilities" / "a.npz") as loaded:
        assert 0 < loaded["probabilities"].min() < 0.5  # a label may be wrong


def test_a_label_map_of_values(place: Path) -> None:
    """Results have the values of the masks, of more than 8 bits too."""
    values = np.array([0, 7, 300], np.uint16)
    write(place, "masks", {"a.png": values[noisy(0)]})
    assert run(place, "--labels", "{0: background, 7: crack, 300: ball}") == 0
    mode, array = result(place, "a")
    assert mode == "I;16"
    assert (array == values[TRUTH]).mean() > 0.99


def test_published_colours_by_name(place: Path) -> None:
    colours = voc_palette(256)[[0, 15, 20]]
    masks = colours[noisy(0)]
    masks[:4] = voc_palette(256)[255]
    write(place, "masks", {"a.png": masks})
    assert run(place, "--labels", "voc-colors") == 0
    assert (result(place, "a")[1] == colours[TRUTH]).all(2).mean() > 0.99


def test_masks_of_a_lossy_format(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "masks" / "a.jpg"
    path.parent.mkdir()
    Image.fromarray((80 * noisy(0)).astype(np.uint8)).save(path)
    assert run(place, "--kind", "labels") == 2
    assert "a.jpg: JPEG and the like change values" in capsys.readouterr().err
    assert run(place, "--labels", "{0..39: x, 40..119: y, 120..255: z}") == 0
    assert (result(place, "a")[1] == np.array([0, 40, 120])[TRUTH]).mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "{x: y}"], "--labels: key 'x' must be a value"),
        (["--labels", "{0: x}"], "--labels: got {0: 'x'}, must name at least two classes"),
        (["--labels", "{0: x, 1: 1}"], "--labels: maps to 1; must be the name of a class"),
        (["--labels", "{0: x, 1: y}"], "a.png: holds 2 ("),
        (["--labels", "nowhere.yaml"], "--labels: neither nowhere.yaml nor"),
        (["--labels", "{0: x, 1: y}", "--unsure", "2"], "unsure: goes without --labels"),
        (["--labels", "{0: x, 1: y}", "--classes", "2"], "classes: goes without --labels"),
        (["--truth", "colours"], "the truths hold colours, the masks indices; --labels says"),
    ],
)
def test_bad_label_maps(
    place: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(place, "masks", {"a.png": noisy(0).astype(np.uint8)})
    write(place, "colours", {"a.png": WHITE_AND[TRUTH]})
    assert run(place, *(o.replace("colours", str(place / "colours")) for o in options)) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert "data.labels" not in error


def test_the_search_takes_colours_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place, "masks", {"a.png": WHITE_AND[noisy(0)]})
    write(place, "truth", {"a.png": WHITE_AND[TRUTH]})
    label_map = "{'#ffffff': x, '#0000ff': y, '#ffff00': z}"
    found = [f"--{n}-folder={place / f}" for n, f in (("image", "images"), ("mask", "masks"))]
    found += [f"--truth-folder={place / 'truth'}", "--labels", label_map, "--trials", "1"]
    assert tune_main([*found, "--output", str(place / "tuned")]) == 0
    assert "--labels" in capsys.readouterr().out
