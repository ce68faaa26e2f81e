"""A Trainer on data sets, models and transforms that are made in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from deepcrf_ext import evaluate, train
from deepcrf_ext.config import DataConfig, ModelConfig, TrainConfig
from deepcrf_ext.data import LabelledPairs, Sample, open_dataset, registry
from deepcrf_ext.data import __main__ as show
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.evaluation import before_and_after
from deepcrf_ext.evaluation.evaluation import evaluate as evaluate_model
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_model
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.trainer import Trainer

MODEL = ModelConfig(
    widths=(4, 6), convs=(1, 1), pooled_blocks=2, head_widths=(8,), hidden=6, pairwise_hidden=12
)


class Halves(Dataset):
    """Bright and dark halves, as tensors: what many a data set yields."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.zeros(24, 32, dtype=torch.long)
        labels[:, 8 * index :] = 1
        return (0.2 + 0.6 * labels.float()).expand(3, -1, -1), labels


def settings(**options: object) -> TrainConfig:
    return TrainConfig(
        DataConfig(crop=None, flip=False, scale_range=None),
        MODEL,
        epochs=2,
        batch_size=2,
        device="cpu",
        amp=False,
        **options,
    )


def test_data_sets_a_model_and_a_transform_of_ones_own(tmp_path: Path) -> None:
    data = LabelledPairs(Halves(), ("dark", "bright"))
    seen: list[str] = []

    def transform(
        sample: Sample, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(sample.name)
        noise = generator.integers(0, 20, sample.image.shape)
        image = torch.from_numpy(sample.image + noise).permute(2, 0, 1).float()
        return image[:, :16, :16], torch.from_numpy(sample.labels).long()[:16, :16]

    model = DeepCRF(MODEL, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(settings(warm_start=0.0), data, data, model, transform=transform)
    assert trainer.model is model
    for name, value in before.items():
        assert model.state_dict()[name].equal(value)
    assert trainer.fit(str(tmp_path / "run"))
    assert sorted(seen) == sorted(2 * ["0", "1", "2", "3"])
    loaded, config, metadata = load_model(tmp_path / "run")
    assert metadata["classes"] == ["dark", "bright"]
    assert config.model == MODEL
    assert loaded.num_classes == 2
    assert DeepCRF.from_pretrained(tmp_path / "run" / "weights").classes == ["dark", "bright"]
    longer = replace(settings(warm_start=0.0), epochs=3)
    checkpoint = tmp_path / "run" / "last.pt"
    again = Trainer(longer, data, data, transform=transform, checkpoint=str(checkpoint))
    assert again.fit(tmp_path / "run", StopRequest())
    assert (again.progress.epoch, len(seen)) == (3, 12)


def test_a_checkpoint_says_that_its_data_were_given_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = LabelledPairs(Halves(), ("dark", "bright"))
    assert Trainer(replace(settings(), epochs=2), data, data).fit(tmp_path / "run")
    run = str(tmp_path / "run")
    for command, arguments in ((evaluate, ["--checkpoint", run]), (train, ["--resume", run])):
        assert command.main(arguments) == 2
        error = capsys.readouterr().err
        assert "data.dataset: the training was given its data in Python" in error
    monkeypatch.setitem(registry._FACTORIES, "halves", lambda root, split: data)
    monkeypatch.setitem(registry.DATASETS, "halves", ())
    assert evaluate.main(["--checkpoint", run, "--data.dataset", "halves"]) == 0


def test_a_backbone_of_ones_own_is_trained_and_read_again(tmp_path: Path, capsys) -> None:
    data = LabelledPairs(Halves(), ("dark", "bright"))
    config = settings(warm_start=0.0)

    def backbone() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.BatchNorm2d(5), nn.ReLU())

    trainer = Trainer(config, data, data, DeepCRF(MODEL, 2, backbone()))
    assert trainer.fit(tmp_path / "run")
    model = DeepCRF.from_pretrained(tmp_path / "run" / "weights", backbone())
    assert evaluate_model(model, data, before_and_after(model), amp=False).images == 4
    assert evaluate.main(["--checkpoint", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "backbone made in Python" in error.splitlines()[-1]
    assert f"from_pretrained('{tmp_path}/run/weights', backbone)" in error
    again = Trainer(
        replace(config, epochs=3),
        data,
        data,
        DeepCRF(MODEL, 2, backbone()),
        checkpoint=tmp_path / "run" / "last.pt",
    )
    assert again.fit(tmp_path / "run")


def test_what_does_not_fit_is_told() -> None:
    data = LabelledPairs(Halves(), ("dark", "bright"))
    with pytest.raises(TypeError, match="train_set: got Halves, must be a SegmentationDataset"):
        Trainer(settings(), Halves(), data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model: has 3 classes, must have those of train_set, 2"):
        Trainer(settings(), data, data, DeepCRF(MODEL, 3))
    other = LabelledPairs(Halves(), ("dark", "light"))
    with pytest.raises(ValueError, match="data.val_split: has the classes dark, light"):
        Trainer(settings(), data, other)


class Binary(Halves):
    """Masks of 0 and 255, as most programs draw them."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = super().__getitem__(index)
        return image, 255 * labels


def test_masks_of_0_and_255_in_python() -> None:
    data = LabelledPairs(Halves(), ("dark", "bright"))
    binary = LabelledPairs(Binary(), ("dark", "bright"))
    for name, pair in (("train_set", (binary, data)), ("val_set", (data, binary))):
        with pytest.raises(InputError, match=f"{name}: labels are 0 and 255 alone, and 255 means"):
            Trainer(settings(), *pair)
    said = LabelledPairs(Binary(), ("dark", "bright"), ignore=255)
    Trainer(settings(), said, data)


def test_empty_data_sets_are_refused() -> None:
    data, empty = (LabelledPairs(d, ("dark", "bright")) for d in (Halves(), []))
    for name, pair in (("train_set", (empty, data)), ("val_set", (data, empty))):
        with pytest.raises(InputError, match=f"{name}: got an empty data set"):
            Trainer(settings(), *pair)


def test_a_run_goes_on_with_its_own_classes_alone(tmp_path: Path) -> None:
    """In their order: label 0 would be another class."""
    data = LabelledPairs(Halves(), ("dark", "bright"))
    assert Trainer(settings(), data, data).fit(tmp_path)
    other = LabelledPairs(Halves(), ("bright", "dark"))
    with pytest.raises(InputError, match="was trained for the classes dark, bright; the data have"):
        Trainer(settings(), other, other, checkpoint=tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda image, labels: (image.byte(), labels), r"an image of uint8 \[3, 24, 32\]"),
        (lambda image, labels: (image.permute(1, 2, 0), labels), r"float32 \[24, 32, 3\]"),
        (lambda image, labels: (image, labels[:5]), r"labels of int64 \[5, 32\]"),
        (lambda image, labels: (image, labels.byte()), r"labels of uint8 \[24, 32\]"),
        (lambda image, labels: (image.numpy(), labels), "an image of ndarray"),
    ],
)
def test_what_a_transform_gives_is_checked(result: Any, message: str, tmp_path: Path) -> None:
    def transform(sample: Sample, generator: np.random.Generator) -> Any:
        image = torch.from_numpy(sample.image).permute(2, 0, 1).float()
        return result(image, torch.from_numpy(sample.labels).long())

    data = LabelledPairs(Halves(), ("dark", "bright"))
    with pytest.raises(InputError, match=f"transform: gave .*{message}"):
        Trainer(settings(), data, data, transform=transform).fit(tmp_path)


def test_commands_on_registered_data_name_what_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image, labels = Halves()[0]
    items = {"bad": [(image, labels), (image, labels + 7), (image, labels[:3])], "none": Halves()}
    monkeypatch.setitem(registry.DATASETS, "mine", ())
    monkeypatch.setitem(
        registry._FACTORIES,
        "mine",
        lambda root, split: (
            items[split] if split == "none" else LabelledPairs(items[split], ("dark", "bright"))
        ),
    )
    assert show.main(["--data.dataset", "mine", "--splits", "bad"]) == 2
    out = capsys.readouterr().out
    assert "problem: item 1: label 8 must be 0..1 or 255" in out
    assert "problem: item 2: labels are [3, 32], must be of the image's size" in out
    with pytest.raises(TypeError, match="data.dataset: mine gave Halves, must be a Segmentation"):
        open_dataset(DataConfig(dataset="mine"), split="none")
    options = ["--data.train-split", "bad", "--data.val-split", "bad", "--output", "run"]
    short = ["--epochs", "2", "--data.crop", "[24, 32]", "--batch-size", "1"]
    assert train.main(["--data.dataset", "mine", *options, *short]) == 2
    assert "error: item " in capsys.readouterr().err


def test_one_class_alone_is_nothing_to_tell() -> None:
    pairs = LabelledPairs([(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))], ("car",))
    with pytest.raises(InputError, match=r"data\.classes: got car alone, must be at least two"):
        Trainer(settings(), pairs, pairs)
