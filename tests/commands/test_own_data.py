"""Folders made elsewhere, binary and colour-coded: trained, measured and predicted by commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from own_data import write, write_blobs
from PIL import Image
from tiny_run import lines

from deepcrf_ext import (
    calibrate,
    evaluate,
    explain,
    predict,
    refine,
    reproduce,
    train,
    tune_dense_crf,
)
from deepcrf_ext.data import __main__ as show
from deepcrf_ext.data import read_labels
from deepcrf_ext.errors import InputError
from deepcrf_ext.records.checkpoint import load_model

TINY = """
model: {widths: [6, 8], convs: [1, 1], pooled_blocks: 2, head_widths: [12], hidden: 16,
  pairwise_hidden: 32}
data: {crop: [40, 56], scale_range: null}
epochs: 8
warm_start: 0.5
validate_every: 8
batch_size: 2
amp: false
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the settings of a tiny network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def train_on(root: Path, *options: str) -> int:
    arguments = ["--config", "tiny.yaml", "--output", "run", "--data.dataset", "folder"]
    return train.main([*arguments, "--data.root", str(root), *options])


@pytest.mark.parametrize(
    ("foreground", "background", "labels"),
    [
        (255, 0, "{0: background, 255: crack}"),
        ((200, 20, 10), (0, 0, 0), "{0: background, '#c8140a': crack}"),
    ],
    ids=["binary", "colours"],
)
def test_train_evaluate_and_predict_by_command_line(place, foreground, background, labels, capsys):
    root = write_blobs(place / "my data", foreground, background)
    write_blobs(root, foreground, background, ["test"])
    assert train_on(root, "--data.labels", labels) == 0
    _, config, metadata = load_model("run")
    assert metadata["classes"] == ["background", "crack"]
    assert config.data.labels is not None
    # The checkpoint says how to read the masks.
    assert evaluate.main(["--checkpoint", "run", "--data.split", "test"]) == 0
    report = json.loads((place / "run/evaluate-folder-test/evaluation.json").read_text())
    rows = list(report["rows"].values())
    assert rows[-1]["iou"]["crack"] > 0.5
    assert tune_dense_crf.main(["--checkpoint", "run", "--trials", "2", "--images", "2"]) == 0
    images = str(root / "images/test/série 1")
    assert predict.main([images, "--checkpoint", "run", "--output", "out"]) == 0
    found = read_labels(place / "out/labels/bild 1.png")
    assert 0.05 < (found == 1).mean() < 0.7


def test_masks_of_0_and_255_without_a_map_stop_training(place, capsys):
    root = write_blobs(place / "data", 255)
    assert train_on(root, "--data.classes", "[background, crack]") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--data.labels '{0: background, 255: crack}'" in error
    assert not (place / "run").exists()


def test_every_file_that_cannot_be_used_is_listed_at_once(place, capsys):
    root = write_blobs(place / "data", 1, splits=["train", "val", "test"])
    places = [f"{split}/série {index % 2}/bild {index}" for index, split in enumerate("ttvvev")]
    names = {"t": "train", "v": "val", "e": "test"}
    places = [names[where[0]] + where[1:] for where in places]
    (root / "masks" / f"{places[0]}.png").write_bytes(b"no picture")
    write(root / "masks" / f"{places[1]}.png", np.full((40, 56), 9, np.uint8))
    (root / "masks" / f"{places[2]}.png").unlink()
    (root / "images" / f"{places[3]}.jpg").unlink()
    write(root / "masks" / f"{places[4]}.png", np.zeros((3, 3), np.uint8))
    write(root / "masks" / f"{places[5]}.png", np.full((40, 56), 9, np.uint8))
    options = ["--data.classes", "[ground, blob]"]
    assert train_on(root, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 5 problems: ")
    assert error.count("\n") == 1
    assert [where in error for where in places] == [True, True, True, True, False, True]
    for where in places[:2]:
        write(root / "masks" / f"{where}.png", np.zeros((40, 56), np.uint8))
    assert train_on(root, *options, "--data.val-split", "train") == 0
    capsys.readouterr()
    for split, bad in (("val", [places[2], places[3], places[5]]), ("test", [places[4]])):
        for command in (evaluate, calibrate, tune_dense_crf):
            assert command.main(["--checkpoint", "run", "--data.split", split]) == 2
            error = capsys.readouterr().err
            assert all(where in error for where in bad)
            assert error.count("\n") == 1
        assert not list((place / "run").glob("*-folder-*"))


def test_splits_that_are_the_same_files_are_refused(place, capsys):
    root = write_blobs(place / "data", 1)
    options = ["--data.images", "images/**", "--data.masks", "masks/**"]
    assert train_on(root, "--data.classes", "[a, b]", *options) == 2
    assert "val has the same images as train" in capsys.readouterr().err


def test_what_measures_takes_the_split_that_training_measured(place, capsys):
    root = write_blobs(place / "data", 1, splits=["training", "validation"])
    splits = ["--data.train-split", "training", "--data.val-split", "validation", "--epochs", "2"]
    assert train_on(root, *splits, "--data.classes", "[ground, ball]") == 0
    assert evaluate.main(["--checkpoint", "run"]) == 0
    assert (place / "run/evaluate-folder-validation/evaluation.json").exists()
    assert explain.main(["compatibility", "--checkpoint", "run"]) == 0
    options = ["--data.dataset", "folder", "--output", "x", "--train.data.val-split", "validation"]
    assert reproduce.parse(options)[0].splits == ("validation",)


def test_measuring_on_another_folder(place, capsys):
    root = write_blobs(place / "data", 1)
    (place / "classes.txt").write_text("ground\nblob\n")
    assert train_on(root, "--data.classes", str(place / "classes.txt")) == 0
    (place / "classes.txt").unlink()
    elsewhere = write_blobs(place / "elsewhere", 255, splits=["far/away"])
    command = ["--checkpoint", "run", "--data.root", str(elsewhere), "--data.split", "far/away"]
    assert evaluate.main(command) == 2
    assert "255 means ignored pixels" in capsys.readouterr().err
    labels = ["--data.labels", "{0: ground, 255: blob}"]
    assert evaluate.main([*command, *labels, "--output", "scores"]) == 0
    report = json.loads((place / "scores/evaluation.json").read_text())
    assert report["data"]["root"] == str(elsewhere)
    write(elsewhere / "masks/far/away/série 0/bild 0.png", np.zeros((3, 3), np.uint8))
    assert evaluate.main([*command, *labels]) == 2


def test_fine_tuning_on_other_classes(place, capsys):
    root = write_blobs(place / "data", 255)
    assert train_on(root, "--data.labels", "{0: background, 255: crack}") == 0
    capsys.readouterr()
    tune = ["--config", "tiny.yaml", "--data.dataset", "folder", "--data.root", str(root)]
    labels = "{255: crack, 0: wall, 7: door}"
    tune += ["--data.labels", labels, "--output", "tuned", "--epochs", "2"]
    assert train.main([*tune, "--init_from", "run"]) == 0
    out = capsys.readouterr().out
    assert "more for the classes that both have (crack)" in out
    _, config, metadata = load_model("tuned")
    assert metadata["classes"] == ["crack", "wall", "door"]
    assert config.warm_start == 0  # the relations were taken
    steps = [json.loads(line) for line in (place / "tuned/metrics.jsonl").read_text().splitlines()]
    assert "surrounding" in steps[0]["loss"]
    # It goes on without what it began from.
    (place / "run").rename(place / "gone")
    assert train.main(["--resume", "tuned", "--epochs", "3"]) == 0
    assert train.main([*tune, "--init_from", "run", "--output", "again"]) == 2
    assert "run is neither a checkpoint nor a run folder" in capsys.readouterr().err
    narrow = ["--model.widths", "[5, 7]", "--model.head_widths", "[9]", "--model.hidden", "7"]
    assert train.main([*tune, "--init_from", "gone", "--output", "again", *narrow]) == 2
    assert "init_from: no layer of gone/best.pt fits the model" in capsys.readouterr().err


def test_labels_that_are_not_there_are_told(place, capsys):
    root = write_blobs(place / "data", 1)
    short = ["--epochs", "1", "--warm-start", "0"]
    assert train_on(root, "--data.classes", "[ground, blob, moon]", *short) == 0
    assert "train has no pixel of moon\n" in capsys.readouterr().err
    write_blobs(root, 255, 255, ["val"])
    short += ["--output", "again"]
    assert train_on(root, "--data.labels", "{0: ground, 1: blob, 255: ignore}", *short) == 2
    assert (
        capsys.readouterr().err
        == "error: data.val_split: no pixel of val has a label, all are ignored\n"
    )


def test_of_many_labels_that_are_not_there_some_are_told(place, capsys):
    root = write_blobs(place / "data", 1)
    names = ", ".join(f"c{index}" for index in range(20))
    short = ["--epochs", "1", "--warm-start", "0"]
    assert train_on(root, "--data.classes", f"[{names}]", *short) == 0
    told = ", ".join(f"c{index}" for index in range(2, 14))
    assert f"train has no pixel of {told} and 6 more\n" in capsys.readouterr().err


def test_outputs_that_cannot_be_made_are_named(place, capsys):
    root = write_blobs(place / "data", 1)
    options = ["--data.classes", "[ground, blob]", "--epochs", "1", "--warm-start", "0"]
    assert train_on(root, *options) == 0
    (place / "file").touch()
    output = ["--output", "file/x"]
    images, masks = str(root / "images/val"), str(root / "masks/val")
    capsys.readouterr()
    for attempt in (
        lambda: train_on(root, *options, *output),
        lambda: predict.main([images, "--checkpoint", "run", *output]),
        lambda: refine.main([images, masks, *output]),
        lambda: reproduce.main(["--data.dataset", "scenes", *output]),
        lambda: show.main([str(root), *options[:2], "--output", "file/x/sheet.png"]),
    ):
        assert attempt() == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == (
            "error: output: file/x cannot be written (Not a directory); choose another folder"
        )


def test_a_run_is_done_without_its_picture(place, monkeypatch, capsys):
    """Such as of an image too large for what memory others leave by then."""

    def refuse(*_: object, **__: object) -> None:
        raise InputError("an image of 9x9 pixels is too large")

    monkeypatch.setattr(train, "write_picture_grid", refuse)
    root = write_blobs(place / "data", 1)
    short = ["--epochs", "1", "--warm-start", "0"]
    assert train_on(root, "--data.classes", "[ground, blob]", *short) == 0
    out, err = capsys.readouterr()
    assert "(best.pt, weights, metrics.jsonl); next" in out
    assert "grid.png is left out: an image of 9x9 pixels is too large\n" in err


def test_splits_without_a_label_are_not_measured(place, capsys):
    root = write_blobs(place / "data", 1)
    short = ["--epochs", "1", "--warm-start", "0"]
    assert train_on(root, "--data.classes", "[ground, blob]", *short) == 0
    capsys.readouterr()
    ignored = ["--checkpoint", "run", "--data.labels", "{0..255: ignore}"]
    for command in (evaluate, calibrate, tune_dense_crf):
        assert command.main(ignored) == 2
        error = capsys.readouterr().err
        assert error == "error: data.split: no pixel of val has a label, all are ignored\n"
    at = ["--index", "0", "--at", "3,4", "--output", "out"]
    assert explain.main(["image", *ignored, *at]) == 0


def test_a_run_that_goes_on_with_more_images(place, capsys):
    """Its learning rate and the steps that are left are those of the epochs, not of the steps."""
    root = write_blobs(place / "data", 1)
    few = write_blobs(place / "few", 1)
    for path in [*few.rglob("bild 0.*"), *few.rglob("bild 1.*")]:
        path.unlink()
    options = ["--data.classes", "[ground, blob]", "--epochs", "2", "--warm-start", "0"]
    assert train_on(root, *options) == 0
    assert train.main(["--resume", "run", "--data.root", str(few), "--epochs", "4"]) == 0
    steps = [step for step in lines(place / "run", "train") if step["step"] > 6]
    assert [step["step"] for step in steps] == [7, 8, 9, 10]
    assert steps[0]["lr"] == pytest.approx(0.05 * 0.5**0.9)
    assert "epoch 3/4, step 7/10" in capsys.readouterr().err


def test_the_home_of_nobody_is_no_root(place, capsys):
    assert train_on(Path("~nobody-of-this-name/data"), "--data.classes", "[a, b]") == 2
    assert capsys.readouterr().err.startswith(
        "error: data.root: ~nobody-of-this-name/data: does not exist"
    )


def test_names_that_are_no_utf8(place, capsys):
    """As an archive of another system leaves them."""
    root = write_blobs(place / "data", 1)
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        path = root / kind / "val" / "série 0" / f"bild 0.{suffix}"
        path.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9." + suffix.encode()))
    options = ["--data.classes", "[ground, blob]", "--epochs", "1", "--warm-start", "0"]
    assert train_on(root, *options) == 0
    assert evaluate.main(["--checkpoint", "run", "--output", "out"]) == 0
    assert b"caf\xe9," in (place / "out/per_image.csv").read_bytes()


def test_photographs_that_exif_turns_are_told(place, capsys):
    root = write_blobs(place / "data", 1)
    photograph = root / "images/val/série 0/bild 0.jpg"
    with Image.open(photograph) as picture:
        exif = picture.getexif()
        exif[0x0112] = 3
        picture.rotate(180).save(photograph, exif=exif)
    options = ["--data.classes", "[ground, blob]", "--epochs", "1", "--warm-start", "0"]
    assert train_on(root, *options) == 0
    notice = f"turned by EXIF: {photograph}; their masks, whose size fits either way"
    assert f"val: {notice}" in capsys.readouterr().err
    assert show.main([str(root), *options[:2]]) == 0
    assert capsys.readouterr().out.count(notice) == 1


def test_a_run_folder_in_use_is_told_before_files_are_read(place, capsys, monkeypatch):
    root = write_blobs(place / "data", 1)
    (place / "run").mkdir()
    (place / "run/notes.txt").write_text("x")
    monkeypatch.setattr(train, "refuse_bad_files", lambda *_: pytest.fail("read"))
    assert train_on(root, "--data.classes", "[ground, blob]") == 2
    assert "error: output: run exists already" in capsys.readouterr().err
