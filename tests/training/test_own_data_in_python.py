"""A Trainer on data sets, models and transforms that are made in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from deepcrf_ext import evaluate, train
from deepcrf_ext.config import DataConfig, ModelConfig, TrainConfig
from deepcrf_ext.data import LabelledPairs, Sample, registry
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
