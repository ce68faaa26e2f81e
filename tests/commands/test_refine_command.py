"""The refine command: masks of any kind, paired in any layout, sharpened, picked up again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcrf_ext import (
    DenseCRFParams,
    dense_crf,
    progress,
    unary_from_labels,
    unary_from_probabilities,
)
from deepcrf_ext.data import read_image
from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.evaluation import refinement
from deepcrf_ext.evaluation.mask_files import MaskFiles
from deepcrf_ext.evaluation.masks import Masked, MaskSettings, read_masked
from deepcrf_ext.refine import main
from deepcrf_ext.tune_dense_crf import main as tune_main

H, W, K = 40, 52, 3
SIZES = {"a": (H, W), "b": (H, W), "sub/c": (30, 44)}
CRF = ["--dense-crf-params", "{bilateral_sxy: 20, bilateral_weight: 4}"]
PARAMS = DenseCRFParams(bilateral_sxy=20, bilateral_weight=4)


def regions(height: int, width: int) -> np.ndarray:
    """True labels: three upright stripes."""
    return np.repeat((np.arange(width) * K // width)[None], height, 0).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """images, truth, and labels that are wrong in one pixel of six."""
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        truth = regions(height, width)
        colours = np.array([(200, 60, 40), (40, 180, 60), (50, 70, 210)], np.uint8)
        image = colours[truth] + rng.integers(0, 12, (height, width, 3), dtype=np.uint8)
        noisy = np.where(rng.random(truth.shape) < 1 / 6, rng.integers(0, K, truth.shape), truth)
        for folder, array in (("images", image), ("truth", truth), ("labels", noisy)):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(array.astype(np.uint8))
            if folder == "labels":
                picture.putpalette(voc_palette(256).tobytes())
            picture.save(path)
    return tmp_path


def run(folders: Path, masks: str, *options: str) -> int:
    inputs = [str(folders / "images"), str(folders / masks)]
    return main([*inputs, "--output", str(folders / "out"), *options, "--device", "cpu"])


def labels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


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
    for more in ([], [], ["--overwrite"]):
        assert main([*arguments, "--output", str(folders / output), *more]) == 0


def test_a_damaged_record_is_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "out").mkdir()
    for text in ("{", "[3]"):
        (folders / "out" / "refine.json").write_text(text)
        assert run(folders, "labels", *CRF) == 2
        assert "refine.json is" in capsys.readouterr().err


def test_bad_files_are_listed(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(regions(20, 52)).save(folders / "labels" / "b.png")
    (folders / "images" / "sub" / "c.png").write_bytes(b"no picture")
    Image.fromarray(regions(H, W)).save(folders / "labels" / "lonely.png")
    assert run(folders, "labels", *CRF) == 1
    captured = capsys.readouterr()
    assert "1 of 4 masks refined" in captured.out
    for text in ("b.png: is 52x20 pixels", "c.png: cannot be read", "lonely.png: mask without"):
        assert text in captured.err
    assert captured.err.count("error:") == 3
    (folders / "images" / "a.png").write_bytes(b"")
    assert run(folders, "labels", *CRF, "--overwrite") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unsure", "300"], "unsure: got 300"),
        (["--certainty", "0"], "certainty: got 0"),
        (["--classes", "1"], "classes: got 1"),
        (["--kind", "probabilities"], "is for .npy, .npz"),
        (["--mask-pattern", "{name}_mask.png"], "have no name in common"),
        (["--dense-crf-params", "{bilateral_srgb: 0.0001}"], "bilateral_srgb"),
        (["--truth", "nowhere"], "nowhere: does not exist"),
        (["--kind", "colours"], "kind"),
        (["--classes", "300"], "classes: got 300"),
    ],
)
def test_bad_options(
    folders: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(folders, "labels", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("unsure", ["255", "null", "0"])
def test_labels_beyond_the_classes_are_named(
    folders: Path, capsys: pytest.CaptureFixture[str], unsure: str
) -> None:
    """The first of them, K, too, which is no unsure pixel."""
    assert run(folders, "labels", "--classes", str(K - 1), "--unsure", unsure) == 2
    error = capsys.readouterr().err
    assert error.count(f"label value {K - 1}; must be in 0..{K - 2}") == len(SIZES)


def test_an_unsure_label_that_is_not_given_is_named(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = labels(folders / "labels" / "b.png")
    array[0, 0] = 255
    Image.fromarray(array).save(folders / "labels" / "b.png")
    assert run(folders, "labels", "--unsure", "null") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "b.png: label value 255; must be below 255" in error
    assert "--unsure 255" in error


def test_images_and_masks_in_one_folder(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folders / "labels").rglob("*.png"):
        Image.open(folders / "images" / path.relative_to(folders / "labels")).save(
            path.with_suffix(".jpg"), quality=95
        )
    together = [str(folders / "labels")] * 2
    assert main([*together, "--output", str(folders / "out")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "a.jpg" in error
    assert "a.png: masks that share a name" in error
    assert "--mask-pattern" in error
    patterns = ["--image-pattern", "**/{name}.jpg", "--mask-pattern", "**/{name}.png"]
    assert main([*together, *patterns, "--output", str(folders / "out")]) == 0


def test_truth_without_a_label(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folders / "truth").rglob("*.png"):
        Image.fromarray(np.full_like(labels(path), 255)).save(path)
    assert run(folders, "labels", "--truth", str(folders / "truth")) == 0
    captured = capsys.readouterr()
    assert "no pixel of the truth has a label, all are 255" in captured.out
    assert "nan" not in captured.out
    assert "Warning" not in captured.err
    found = ["--image-folder", "images", "--mask-folder", "labels", "--truth-folder", "truth"]
    found[1::2] = [str(folders / name) for name in found[1::2]]
    assert tune_main([*found, "--trials", "1", "--output", str(folders / "tuned")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error == "error: no pixel of the images has a true label, all are 255"


def test_masks_that_are_no_label_maps(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = np.tile(np.arange(W, dtype=np.uint8) * 4, (H, 1))
    for name, array in (("a", grey), ("b", np.where(grey > 90, 255, 0).astype(np.uint8))):
        (folders / name).mkdir()
        Image.fromarray(np.tile(array, (1, 1))).save(folders / name / f"{name}.png")
    Image.fromarray((np.arange(H * W) % 200).reshape(H, W).astype(np.uint8)).save(
        folders / "a" / "a.png"
    )
    assert run(folders, "a") == 2
    assert "200 grey levels; --kind saliency" in capsys.readouterr().err
    assert run(folders, "b") == 2
    assert "--kind saliency takes masks of 0 and 255" in capsys.readouterr().err
    (folders / "b" / "b.png").write_bytes((folders / "images" / "b.png").read_bytes())
    assert run(folders, "b") == 2
    assert "b: the masks hold 1689 colours; must be 2..255" in capsys.readouterr().err


def test_inputs_are_never_replaced(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folders / "images"), str(folders / "labels"), "--output", str(folders)]
    assert main([*arguments, "--overwrite", "--device", "cpu"]) == 2
    assert "is an input" in capsys.readouterr().err


def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    assert list(progress.progress(iter("ab"), 2, "refine", "image")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == [
        "refine: 1 of 2 images, 0 s left",
        "refine: 2 of 2 images, 0 s left",
    ]
