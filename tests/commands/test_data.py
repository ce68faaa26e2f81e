"""`python -m deepcrf_ext.data`: what it shows of a folder, and when its exit code is 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from own_data import write, write_blobs

from deepcrf_ext.data import read_image
from deepcrf_ext.data.__main__ import main


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_good_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_blobs(place / "data", (200, 20, 10), (0, 0, 0), ["val", "train", "far"])
    (root / "images" / "train" / "notes.txt").write_text("x")
    labels = ["--data.labels", "{0: ground, '#c8140a': ball, 255: ignore}"]
    assert main([str(root), *labels, "--output", "out/sheet.png", "--pictures", "2"]) == 0
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if "images with masks" in line] == [
        "train",
        "val",
        "far",
    ]
    assert "train: 6 images with masks, all of 56x40 pixels" in out
    assert out.count("left out, no images: 1 .txt") == 1
    ground, ball, ignored = (line.split() for line in out.splitlines()[2:5])
    assert ground == ["0", "ground", "78.57%", "6"]
    assert ball == ["1", "ball", "21.43%", "6"]
    assert ignored == ["255", "(ignored)", "never", "0"]
    sheet = read_image(place / "out/sheet.png")
    assert (sheet == (200, 20, 10)).all(2).mean() > 0.02
    assert main([str(root), *labels, "--splits", "val", "--pictures", "0"]) == 0
    assert "train" not in capsys.readouterr().out


def test_every_bad_file_is_listed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_blobs(place / "data", 1)
    bad = [root / f"{kind}/train/série 0/bild {i}" for i, kind in ((0, "images"), (2, "masks"))]
    bad[0].with_suffix(".jpg").write_bytes(b"x")
    write(bad[1].with_suffix(".png"), np.full((40, 56), 77, np.uint8))
    write(root / "masks/val/lonely.png", np.zeros((2, 2), np.uint8))
    write(root / "images/val/bare.png", np.zeros((2, 2), np.uint8))
    assert main([str(root), "--data.classes", "[ground, ball]"]) == 2
    out, error = capsys.readouterr()
    assert error == f"error: {root}: 4 problems, listed above\n"
    for part in ("bild 0.jpg: cannot be read", "bild 2.png: holds 77", "lonely.png: mask without",
                 "bare.png: image without", "train: 4 images", "val: 6 images"):  # fmt: skip
        assert part in out


def test_classes_keep_their_colours_on_a_command_line(place: Path, capsys) -> None:
    root = write_blobs(place / "data", (200, 20, 10), (0, 0, 0))
    for given in ("{ground: '#000000', ball: '#c8140a'}", "[ground: [0, 0, 0], ball: 200 20 10]"):
        assert main([str(root), "--data.classes", given]) == 0
        assert "ball" in capsys.readouterr().out
        assert (read_image(place / "contact-sheet.png") == (200, 20, 10)).all(2).mean() > 0.02


@pytest.mark.parametrize("output", ["sheet", "sheet.txt", "data", "data/masks/train/x.png"])
def test_a_contact_sheet_replaces_no_file_of_another_kind(output: str, place: Path, capsys) -> None:
    root = write_blobs(place / "data", 1)
    mask = write(root / "masks/train/x.png", np.zeros((2, 2), np.uint8))
    write(root / "images/train/x.png", np.zeros((2, 2), np.uint8))
    before = mask.read_bytes()
    assert main([str(root), "--data.classes", "[ground, ball]", "--output", output]) == 2
    assert re.match(
        f"error: output: (got )?{output}(, must be| is a file)", capsys.readouterr().err
    )
    assert mask.read_bytes() == before


def test_a_folder_whose_classes_are_not_told(place: Path, capsys) -> None:
    root = write_blobs(place / "data", (200, 20, 10), (0, 0, 0))
    assert main([str(root)]) == 2
    out, error = capsys.readouterr()
    assert "21.43%" in out
    assert "--data.labels \"{0: NAME, '#c8140a': NAME}\"" in error
    assert (place / "contact-sheet.png").exists()
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    write(root / "masks/train/série 0/bild 0.png", noise)
    assert main([str(root)]) == 2
    assert "values or colours" in capsys.readouterr().err


def test_one_set_of_images_is_none_to_train_on(place: Path, capsys) -> None:
    write_blobs(place / "data", 1, splits=[""])
    options = ["data", "--data.images", "images/**", "--data.masks", "masks/**"]
    assert main([*options, "--data.classes", "[ground, ball]"]) == 2
    out, error = capsys.readouterr()
    assert "all: 6 images" in out
    assert error.startswith("error: data.images: without {split}, training and validation would")
    assert main([*options, "--data.classes", "[ground, ball]", "--splits", "all"]) == 0
    assert main(options) == 2
    assert "data.classes: not given" in capsys.readouterr().err


def test_splits_are_those_of_either_pattern(place: Path, capsys) -> None:
    root = write_blobs(place / "data", 1, splits=["training", "val"])
    for image in [*root.glob("images/val/*/*.jpg")]:
        image.rename(image.with_stem(f"{image.stem} val"))
    for mask in [*root.glob("masks/val/*/*.png")]:
        mask.rename(mask.with_stem(f"{mask.stem} val"))
    options = ["--data.images", "images/*/{name}.jpg", "--data.classes", "[ground, ball]"]
    assert main([str(root), *options]) == 2  # as training would end
    printed = capsys.readouterr()
    assert "training: 6 images" in printed.out
    assert "val: 6 images" in printed.out
    assert "holds val, training, not train; --data.train-split or" in printed.err
    assert main([str(root), *options, "--data.train-split", "training"]) == 0


def test_a_split_without_a_label(place: Path, capsys) -> None:
    root = write_blobs(place / "data", 255, 255)
    for kind in ("images", "masks"):
        cv2.imwrite(str(root / kind / "train" / "higher.png"), np.full((44, 56), 255, np.uint8))
    assert main([str(root), "--data.classes", "[ground, ball]"]) == 2
    printed = capsys.readouterr().out
    assert "so that nothing would be learnt" in printed
    sizes = "56 wide and 40..44 high in 2 sizes, most often 56x40"
    assert f"train: 7 images without a label, {sizes}\n" in printed
    assert "ground  " not in printed
    assert "(ignored)   100.00%" in printed


def test_masks_of_0_and_255(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_blobs(place / "data", 255)
    assert main([str(root), "--data.classes", "[ground, ball]"]) == 2
    assert "problem: all masks of train hold 0 and 255 alone" in capsys.readouterr().out


def test_split_files_and_other_data_sets(place: Path, capsys) -> None:
    root = write_blobs(place / "data", 1)
    for split in ("train", "val"):
        names = [f"{split}/série {i % 2}/bild {i}" for i in range(3)]
        (root / f"{split}.txt").write_text("\n".join(names))
    options = ["--data.split_file", "{split}.txt", "--data.classes", "[a, b]"]
    assert main([str(root), *options]) == 0
    assert capsys.readouterr().out.count("3 images with masks") == 2
    assert main(["--data.dataset", "scenes", "--splits", "val", "--pictures", "1"]) == 0
    assert "val: 64 images with masks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "root: not given"),
        (["nowhere"], "root: nowhere: does not exist in /"),
        (["--data.dataset", "voc"], "data.root: not given"),
        (["empty"], "empty holds no images"),
        (["empty", "--data.dataset", "mine"], "data.dataset: got 'mine'"),
        (["empty", "--data.colour", "x"], "colour"),
        (["empty", "--pictures", "-1"], "pictures"),
    ],
)
def test_bad_options_end_in_one_line(arguments, message, place: Path, capsys) -> None:
    (place / "empty").mkdir()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_the_splits_are_and_are_not(place: Path, capsys) -> None:
    root = write_blobs(place / "data", 1, splits=["train"])
    (root / "images" / "Thumbs.db").touch()
    assert main([str(root), "--data.classes", "[a, b]"]) == 2
    printed = capsys.readouterr()
    assert "Thumbs" not in printed.out
    assert "holds train, not val; --data.val-split or" in printed.err
    assert main([str(root), "--data.classes", "[a, b]", "--splits", "train"]) == 0


def test_options_of_training_are_taken(place: Path, capsys) -> None:
    root = write_blobs(place / "data", 1, splits=["training", "validation"])
    splits = ["--data.train-split", "training", "--data.val-split", "validation"]
    assert main([str(root), "--data.classes", "[a, b]", *splits, "--data.crop", "[8, 8]"]) == 0
    assert "not there" not in capsys.readouterr().out


def test_tags_of_a_geotiff_are_nothing_to_tell(place: Path) -> None:
    """In a process of its own, as OpenCV writes past sys.stderr."""
    root = place / "data"
    for split in ("train", "val"):
        write(root / f"masks/{split}/a.png", np.eye(8, dtype=np.uint8))
        image = root / f"images/{split}/a.tif"
        image.parent.mkdir(parents=True)
        bands = 40 * np.arange(8 * 8 * 4, dtype=np.uint16).reshape(8, 8, 4)
        assert cv2.imwrite(str(image), bands)
    command = [sys.executable, "-m", "deepcrf_ext.data", str(root), "--data.classes", "[a, b]"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=place)
    assert done.stderr == ""


def test_names_that_cannot_be_printed(place: Path) -> None:
    """In a process of its own, as the output of tests prints anything."""
    root = write_blobs(place / "data", 1)
    lonely = os.fsdecode(os.fsencode(root / "masks/val") + b"/caf\xe9.png")
    Path(lonely).write_bytes(b"")
    command = [sys.executable, "-m", "deepcrf_ext.data", str(root), "--data.classes", "[a, b]"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {root}: 1 problem, listed above".encode()
    assert b"problem: " + os.fsencode(root) + b"/masks/val/caf\\udce9.png: mask" in done.stdout


def test_what_training_refuses_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_blobs(place / "data", 1, splits=["train", "val", "test"])
    assert main([str(root), "--data.labels", "{0: ball, 1: ball}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: data.classes: ball is the only one; training takes at least two"
    )
    for path in (root / "masks/val").rglob("*.png"):
        write(path, np.full((40, 56), 255, np.uint8))
    labels = ["--data.labels", "{0: ground, 1: ball, 255: ignore}"]
    assert main([str(root), *labels]) == 2
    error = capsys.readouterr().err
    assert error == "error: data.val_split: no pixel of val has a label, all are ignored\n"
    assert main([str(root), *labels, "--data.val-split", "test"]) == 0


def test_a_split_without_masks_hides_no_other(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of which the labels are not public, where nothing says what the masks mean."""
    root = write_blobs(place / "data", 1)
    write(root / "images/test/a.png", np.zeros((2, 2, 3), np.uint8))
    assert main([str(root)]) == 2
    out, error = capsys.readouterr()
    assert "val: 6 images with masks" in out
    assert f"not there: test: {root}/masks/test: does not exist" in out
    assert '--data.labels "{0: NAME, 1: NAME}"' in error


def test_files_that_are_no_images_are_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "c.npy"):
        (place / "data/images/train").mkdir(parents=True, exist_ok=True)
        (place / "data/images/train" / name).write_bytes(b"x")
    assert main(["data"]) == 2
    error = capsys.readouterr().err
    assert "data/images/train: holds no images, but 2 .nii.gz, 1 .npy (data.images" in error
