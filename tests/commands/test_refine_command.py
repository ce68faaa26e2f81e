"""The refine command: masks of any kind, paired in any layout, sharpened, picked up again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from noisy_masks import CRF, SIZES, H, K, W, labels, regions, run, write_folders
from PIL import Image

from deepcrf_ext import (
    DenseCRFParams,
    dense_crf,
    unary_from_labels,
    unary_from_probabilities,
)
from deepcrf_ext.data import read_image
from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.evaluation import refinement
from deepcrf_ext.evaluation.mask_files import MaskFiles
from deepcrf_ext.evaluation.masks import Masked, MaskSettings, read_masked
from deepcrf_ext.pictures.labels import overlay
from deepcrf_ext.refine import main

PARAMS = DenseCRFParams(bilateral_sxy=20, bilateral_weight=4)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path)


def one_hot(array: np.ndarray) -> np.ndarray:
    return np.eye(K, dtype=np.float32)[array].transpose(2, 0, 1)


def planes(folders: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(read_image(folders / "images" / f"{name}.png")).permute(2, 0, 1)[None]


def test_label_maps(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(folders, "labels", *CRF, "--truth", str(folders / "truth"), "--certainty", "0.6") == 0
    )
    output = capsys.readouterr().out
    assert "3 of 3 masks refined" in output
    before, after = (float(word) for word in output.split("mean IoU")[1].split() if "." in word)
    assert before < 85
    assert after > 97
    for name in SIZES:
        path = folders / "out" / "labels" / f"{name}.png"
        given = torch.from_numpy(labels(folders / "labels" / f"{name}.png"))[None]
        energies = unary_from_labels(given, K, 0.6, 255)
        wanted = dense_crf(energies, planes(folders, name), PARAMS)[0].argmax(0)
        assert np.array_equal(labels(path), wanted.numpy())
        assert Image.open(path).getpalette() == voc_palette(256).flatten().tolist()
    assert not (folders / "out" / "probabilities").exists()


def test_unsure_pixels_and_the_coding_of_grey_masks(folders: Path) -> None:
    for path in (folders / "labels").rglob("*.png"):
        array = labels(path)
        array[: array.shape[0] // 4] = 9
        Image.fromarray(array).save(path)
    assert run(folders, "labels", *CRF, "--unsure", "9") == 0
    refined = Image.open(folders / "out" / "labels" / "a.png")
    assert refined.mode == "L"
    assert (np.array(refined) == regions(H, W)).mean() > 0.99


@pytest.mark.parametrize("form", ["khw.npy", "hwk.npy", "batch.npz", "small.npz", "uint8.npz"])
def test_probabilities(folders: Path, form: str) -> None:
    for name in SIZES:
        noisy = labels(folders / "labels" / f"{name}.png")
        array = 0.5 * one_hot(noisy) + 0.5 / K
        path = folders / "arrays" / f"{name}.{form.split('.')[1]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = form.split(".")[0]
        if kind == "hwk":
            array = np.asfortranarray(array.transpose(1, 2, 0)).astype(np.float64)
        if kind == "batch":
            np.savez(path, probabilities=array[None], classes=np.array(["x"] * K))
        elif kind == "small":
            np.savez_compressed(path, array[:, ::3, ::4].astype(np.float16))
        elif kind == "uint8":
            np.savez(path, (255 * array + 0.5).astype(np.uint8))
        else:
            np.save(path, array)
    assert run(folders, "arrays", *CRF, "--probabilities", "--truth", str(folders / "truth")) == 0
    for name, (height, width) in SIZES.items():
        with np.load(folders / "out" / "probabilities" / f"{name}.npz") as loaded:
            refined = loaded["probabilities"]
        assert refined.shape == (K, height, width)
        np.testing.assert_allclose(refined.sum(0, dtype=np.float32), 1, atol=5e-3)
        result = labels(folders / "out" / "labels" / f"{name}.png")
        assert (result == regions(height, width)).mean() > 0.9
    if form == "khw.npy":
        array = torch.from_numpy(np.load(folders / "arrays" / "a.npy"))[None]
        energies = unary_from_probabilities(array)
        wanted = dense_crf(energies, planes(folders, "a"), PARAMS)[0]
        with np.load(folders / "out" / "probabilities" / "a.npz") as loaded:
            np.testing.assert_allclose(loaded["probabilities"], wanted, atol=1e-3)


def test_results_are_masks_again(folders: Path) -> None:
    assert run(folders, "labels", *CRF, "--probabilities") == 0
    again = [str(folders / "images"), str(folders / "out" / "probabilities"), "--output"]
    assert main([*again, str(folders / "again"), "--device", "cpu"]) == 0


def test_overlays_show_masks_beside_refined_labels(folders: Path) -> None:
    """Tinted in VOC's colours where masks hold values; pixels of which they are unsure are not."""
    path = folders / "labels" / "a.png"
    given = labels(path)
    given[:9] = 255
    Image.fromarray(given).save(path)
    assert run(folders, "labels", *CRF) == 0
    shown = folders / "out" / "overlays"
    assert not shown.exists()
    assert run(folders, "labels", *CRF, "--overlays") == 0  # labels alone are not enough
    for name, (height, width) in SIZES.items():
        assert np.array(Image.open(shown / f"{name}.png")).shape == (height, 2 * width, 3)
    image, refined = read_image(folders / "images" / "a.png"), folders / "out" / "labels" / "a.png"
    before, after = np.split(np.array(Image.open(shown / "a.png")), 2, axis=1)
    np.testing.assert_array_equal(before, overlay(image, given, voc_palette(K)))
    np.testing.assert_array_equal(after, overlay(image, labels(refined), voc_palette(K)))
    assert run(folders, "labels", "--overwrite") == 0
    assert not list(shown.rglob("*.png"))  # which would be of other settings


@pytest.mark.parametrize("form", ["palette", "colours"])
def test_overlays_have_the_colours_of_the_masks(folders: Path, form: str) -> None:
    colours = np.array([(9, 9, 9), (250, 240, 0), (0, 200, 200)], np.uint8)
    for path in (folders / "labels").rglob("*.png"):
        given = labels(path)
        picture = Image.fromarray(colours[given] if form == "colours" else given)
        if form == "palette":
            picture.putpalette(colours.tobytes())
        picture.save(path)
    assert run(folders, "labels", *CRF, "--overlays") == 0
    after = np.array(Image.open(folders / "out" / "overlays" / "a.png"))[:, W:]
    result = np.array(Image.open(folders / "out" / "labels" / "a.png").convert("RGB"))
    refined = (result[..., None, :] == colours).all(-1).argmax(-1)
    assert (refined == regions(H, W)).mean() > 0.99
    image = read_image(folders / "images" / "a.png")
    np.testing.assert_array_equal(after, overlay(image, refined, colours))


def test_logits(folders: Path) -> None:
    path = folders / "logits" / "a.npy"
    path.parent.mkdir()
    np.save(path, 3 * one_hot(labels(folders / "labels" / "a.png")) - 1)
    assert run(folders, "logits", "--kind", "logits", *CRF) == 0
    assert (labels(folders / "out" / "labels" / "a.png") == regions(H, W)).mean() > 0.95
    assert run(folders, "logits", "--overwrite") == 2  # no probabilities


def test_saliency(folders: Path) -> None:
    rng = np.random.default_rng(1)
    for name, (height, width) in SIZES.items():
        front = (regions(height, width) == 1).astype(float)
        grey = 255 * (0.25 + 0.5 * front + 0.25 * rng.random(front.shape))
        path = folders / "saliency" / f"{name}_mask.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.astype(np.uint8)).save(path, quality=95)
        true = folders / "fronts" / f"{name}.png"
        true.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * front).astype(np.uint8)).save(true)
    options = ["--mask-pattern", "{name}_mask.jpg", "--kind", "saliency", "--probabilities"]
    assert run(folders, "saliency", *options, "--truth", str(folders / "fronts"), *CRF) == 0
    for name, (height, width) in SIZES.items():
        result = Image.open(folders / "out" / "labels" / f"{name}.png")
        assert result.mode == "L"
        front = 255 * (regions(height, width) == 1)
        assert (np.array(result) == front).mean() > 0.98
        grey = labels(folders / "out" / "probabilities" / f"{name}.png")
        assert ((grey > 127) == (np.array(result) > 0)).mean() > 0.999


def test_two_files_and_a_preset(folders: Path) -> None:
    arguments = [str(folders / "images" / "a.png"), str(folders / "labels" / "a.png")]
    options = ["--output", str(folders / "out"), "--dense-crf-params", "deeplab"]
    assert main([*arguments, *options, "--normalisation", "after", "--device", "cpu"]) == 0
    params = DenseCRFParams(1, 3, 67, 3, 4, normalisation="after")
    given = torch.from_numpy(labels(folders / "labels" / "a.png"))[None]
    energies = unary_from_labels(given, K, 0.7)
    wanted = dense_crf(energies, planes(folders, "a"), params)[0].argmax(0)
    assert np.array_equal(labels(folders / "out" / "labels" / "a.png"), wanted.numpy())


def test_masks_beside_images(folders: Path) -> None:
    for path in (folders / "labels").rglob("*.png"):
        inner = path.relative_to(folders / "labels")
        target = folders / "images" / inner.with_name(f"{inner.stem}_mask.png")
        path.rename(target)
    assert run(folders, "images", "--mask-pattern", "{name}_mask.png", *CRF) == 0
    assert (folders / "out" / "labels" / "sub" / "c.png").exists()


def test_batches_give_the_same(folders: Path) -> None:
    assert run(folders, "labels", *CRF) == 0
    wanted = {name: labels(folders / "out" / "labels" / f"{name}.png") for name in SIZES}
    assert run(folders, "labels", *CRF, "--overwrite", "--batch-size", "2", "--workers", "3") == 0
    for name, array in wanted.items():
        assert np.array_equal(labels(folders / "out" / "labels" / f"{name}.png"), array)


@pytest.mark.parametrize("kind", ["labels", "arrays"])
def test_large_images_are_refined_in_tiles(folders: Path, kind: str) -> None:
    height, width = 200, 260
    rng = np.random.default_rng(0)
    truth = regions(height, width)
    noisy = np.where(rng.random(truth.shape) < 1 / 6, rng.integers(0, K, truth.shape), truth)
    image = (80 * truth[..., None] + rng.integers(0, 9, (height, width, 3))).astype(np.uint8)
    for folder in ("big", "bigmasks"):
        (folders / folder).mkdir()
    Image.fromarray(image).save(folders / "big" / "x.png")
    if kind == "labels":
        Image.fromarray(noisy.astype(np.uint8)).save(folders / "bigmasks" / "x.png")
    else:
        np.save(folders / "bigmasks" / "x.npy", (0.5 * one_hot(noisy) + 0.5 / K)[:, ::2, ::2])
    results = []
    for memory in ("2", "0.002"):
        out = folders / f"out{memory}"
        inputs = [str(folders / "big"), str(folders / "bigmasks"), "--output", str(out)]
        options = ["--memory", memory, "--probabilities", "--device", "cpu", *CRF]
        assert main([*inputs, *options]) == 0
        with np.load(out / "probabilities" / "x.npz") as loaded:
            results.append((labels(out / "labels" / "x.png"), loaded["probabilities"]))
    assert (results[0][0] == results[1][0]).mean() > 0.999
    np.testing.assert_allclose(results[0][1], results[1][1], atol=0.03)


def test_a_stopped_run_goes_on(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = ["--truth", str(folders / "truth")]
    assert run(folders, "labels", *CRF, *truth) == 0
    whole = capsys.readouterr().out
    out = folders / "out" / "labels"
    (out / "sub" / "c.png").unlink()
    (out / "sub" / ".c.png.partial").write_bytes(b"half")  # of a killed process
    kept = (out / "a.png").stat().st_mtime_ns
    assert run(folders, "labels", *CRF, *truth) == 0
    again = capsys.readouterr().out
    assert "(2 of them earlier)" in again
    assert again.splitlines()[1] == whole.splitlines()[1]
    assert (out / "a.png").stat().st_mtime_ns == kept
    assert sorted(path.name for path in out.rglob("*.*")) == ["a.png", "b.png", "c.png"]
    assert run(folders, "labels", *CRF, "--probabilities") == 0  # labels alone are not enough
    assert len(list((folders / "out" / "probabilities").rglob("*.npz"))) == 3
    assert run(folders, "labels") == 2  # other parameters
    assert "bilateral_sxy was 20" in capsys.readouterr().err
    assert run(folders, "labels", "--overwrite") == 0
    assert json.loads((folders / "out" / "refine.json").read_text())["bilateral_sxy"] == 80


def test_finished_images_are_not_read_again(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless their truth is given."""
    assert run(folders, "labels") == 0
    read: list[str] = []

    def spy(file: MaskFiles, settings: MaskSettings) -> Masked:
        read.append(file.name)
        return read_masked(file, settings)

    monkeypatch.setattr(refinement, "read_masked", spy)
    assert run(folders, "labels") == 0
    assert read == []
    assert "3 of 3 masks refined" in capsys.readouterr().out
    assert run(folders, "labels", "--truth", str(folders / "truth")) == 0
    assert sorted(read) == sorted(SIZES)


def test_a_stopped_run_that_overwrites_goes_on_too(folders: Path) -> None:
    """What it has not come to yet is of other settings."""
    assert run(folders, "labels", *CRF) == 0
    out, other = folders / "out" / "labels", [*CRF, "--dense-crf-iterations", "0"]
    (folders / "images" / "b.png").rename(folders / "b.png")  # the run is stopped before b
    assert run(folders, "labels", *other, "--overwrite") == 1
    (folders / "b.png").rename(folders / "images" / "b.png")
    kept = (out / "a.png").stat().st_mtime_ns
    assert run(folders, "labels", *other) == 0
    assert (out / "a.png").stat().st_mtime_ns == kept
    for name in SIZES:
        given = labels(folders / "labels" / f"{name}.png")
        np.testing.assert_array_equal(labels(out / f"{name}.png"), given)


@pytest.mark.parametrize("output", ["labels", "labels/sharp"])
def test_results_among_the_masks_are_no_masks(folders: Path, output: str) -> None:
    arguments = [str(folders / "images"), str(folders / "labels"), *CRF, "--probabilities"]
    arguments += ["--overlays"]
    for more in ([], [], ["--overwrite"]):
        assert main([*arguments, "--output", str(folders / output), *more]) == 0
