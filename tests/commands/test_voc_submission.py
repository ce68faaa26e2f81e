"""The archive for VOC's evaluation server: its layout, its PNGs, and what is refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import write_run
from voc_lists import TEST, TRAIN, VAL, write_list

from deepcrf_ext.config import DataConfig, ModelConfig, TrainConfig, to_dict
from deepcrf_ext.data import open_dataset
from deepcrf_ext.data.images import read_labels, voc_palette
from deepcrf_ext.data.voc import CLASSES
from deepcrf_ext.evaluation.prediction import predict_image
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_model, save_checkpoint
from deepcrf_ext.voc_submission import main

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
NAMES = [*TEST, "2011_000003"]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOCdevkit/VOC2012 with test images of several sizes, and no labels."""
    root = tmp_path_factory.mktemp("voc")
    folder = root / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages").mkdir(parents=True)
    write_list(folder / "ImageSets" / "Segmentation" / "test.txt", NAMES)
    write_list(folder / "ImageSets" / "Segmentation" / "val.txt", VAL)
    rng = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        pixels = rng.integers(0, 256, (25 + 9 * index, 40 - 6 * index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
    assert not set(NAMES) & {*TRAIN, *VAL}
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, voc: Path) -> Path:
    """A run folder with an untrained model of VOC's classes."""
    folder = tmp_path_factory.mktemp("run")
    model_config = ModelConfig(
        widths=(4, 6), convs=(1, 1), pooled_blocks=2, head_widths=(8,), hidden=8
    )
    config = TrainConfig(DataConfig("voc", voc), model_config, amp=False)
    torch.manual_seed(0)
    model = DeepCRF(model_config, len(CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    state = {
        "config": to_dict(config),
        "classes": list(CLASSES),
        "palette": voc_palette(len(CLASSES)).tolist(),
        "epoch": 1,
        "step": 1,
        "model": model.state_dict(),
    }
    save_checkpoint(folder / "last.pt", state)
    return folder


def submit(run: Path, voc: Path, output: Path, *more: str) -> int:
    arguments = ["--checkpoint", str(run), "--data.root", str(voc), "--output", str(output)]
    return main([*arguments, "--device", "cpu", *more])


def test_archive_layout_and_labels(run, voc, tmp_path):
    output = tmp_path / "new" / "results.tgz"
    assert submit(run, voc, output, "--row", "1unary+2pair") == 0
    with tarfile.open(output, "r:gz") as archive:
        members = archive.getnames()
        archive.extractall(tmp_path / "unpacked")
    assert members == [f"{FOLDER}/{name}.png" for name in NAMES]
    model, _, _ = load_model(run)
    used = set()
    for sample in open_dataset("voc", voc, "test"):
        path = tmp_path / "unpacked" / FOLDER / f"{sample.name}.png"
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert picture.size == sample.image.shape[1::-1]
            assert picture.getpalette() == voc_palette(256).flatten().tolist()
        labels = read_labels(path)
        expected = predict_image(model, sample.image, "1unary+2pair", amp=False).labels
        np.testing.assert_array_equal(labels, expected)
        used |= set(np.unique(labels).tolist())
    assert len(used) > 2, "the untrained model must not be constant for this test"
    assert max(used) < len(CLASSES)
    assert [path.name for path in output.parent.iterdir()] == ["results.tgz"]


def test_competition_and_default_row(run, voc, tmp_path, capsys):
    output = tmp_path / "results.tgz"
    assert submit(run, voc, output, "--competition", "comp5") == 0
    with tarfile.open(output) as archive:
        assert {str(Path(name).parent) for name in archive.getnames()} == {
            FOLDER.replace("comp6", "comp5")
        }
    model, _, _ = load_model(run)
    assert f"by the row {list(model.variants())[-1]}:" in capsys.readouterr().out


def test_an_archive_is_not_replaced_by_chance(run, voc, tmp_path, capsys):
    output = tmp_path / "results.tgz"
    output.write_bytes(b"earlier")
    assert submit(run, voc, output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_bytes() == b"earlier"
    assert submit(run, voc, output, "--overwrite") == 0
    assert tarfile.is_tarfile(output)
    assert submit(run, voc, tmp_path, "--overwrite") == 2, "before the images are segmented"
    assert f"output: {tmp_path} is a folder; must be the name of a file" in capsys.readouterr().err


def test_a_failing_image_leaves_no_archive(run, voc, tmp_path, capsys):
    image = voc / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{NAMES[1]}.jpg"
    whole = image.read_bytes()
    image.write_bytes(b"")
    try:
        assert submit(run, voc, tmp_path / "results.tgz") == 2
    finally:
        image.write_bytes(whole)
    assert str(image) in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--competition", "comp7"], "'comp7'"),
        (["--row", "nope"], "'nope'"),
        (["--data.split", "nope"], "'nope'"),
    ],
)
def test_bad_options(run, voc, tmp_path, capsys, more, message):
    assert submit(run, voc, tmp_path / "r.tgz", *more) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_other_classes_is_refused(voc, tmp_path, capsys):
    other = write_run(tmp_path / "run", tmp_path / "camvid")
    assert submit(other, voc, tmp_path / "r.tgz") == 2
    assert "trained for 11 classes" in capsys.readouterr().err
