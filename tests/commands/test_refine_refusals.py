"""What the refine command says of masks, options and folders that it cannot use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from noisy_masks import CRF, SIZES, H, K, W, labels, regions, run, write_folders
from PIL import Image

from deepcrf_ext.refine import main
from deepcrf_ext.tune_dense_crf import main as tune_main


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path)


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
        (["--mask-pattern", "{name}_mask.png"], "no masks, and "),
        (["--mask-pattern", "{name}/*"], "have no name in common"),
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


def test_a_damaged_record_is_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "out").mkdir()
    for text in ("{", "[3]"):
        (folders / "out" / "refine.json").write_text(text)
        assert run(folders, "labels", *CRF) == 2
        assert "refine.json is" in capsys.readouterr().err
