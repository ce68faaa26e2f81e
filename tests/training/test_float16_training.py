"""Training in float16: as in float32, continued exactly, and past losses that overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import lines, training_options, write_learnable_camvid

from deepcrf_ext import evaluate, predict, train
from deepcrf_ext.config import DataConfig, ModelConfig, TrainConfig
from deepcrf_ext.data import open_dataset
from deepcrf_ext.parallel.device import autocast
from deepcrf_ext.records.checkpoint import load_checkpoint
from deepcrf_ext.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_learnable_camvid(tmp_path_factory.mktemp("camvid"), train=6, val=1)


def run(data: Path, output: Path, epochs: int, *more: str) -> Path:
    more = ("--optim.schedule", "exponential", "--warm-start", "0", *more)
    arguments = training_options(output.parent, data, output, "--epochs", str(epochs), *more)
    assert train.main(arguments) == 0
    return output


@pytest.mark.parametrize(
    ("amp", "dtype"),
    [
        (False, torch.float32),
        (True, torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_what_products_compute_in(amp, dtype) -> None:
    with autocast(torch.device("cpu"), amp):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_float16_trains_as_float32_and_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", 3, "--amp", "float16")
    plain = run(data, tmp_path / "plain", 3, "--amp", "false")
    for half, full in zip(lines(whole, "train"), lines(plain, "train"), strict=True):
        assert half["loss"] == pytest.approx(full["loss"], rel=0.02)
    halves = run(data, tmp_path / "halves", 2, "--amp", "float16")
    assert train.main(["--resume", str(halves), "--epochs", "3"]) == 0
    one, other = (load_checkpoint(folder / "last.pt") for folder in (whole, halves))
    assert one["scaler"] == other["scaler"]
    assert all(one["model"][name].equal(other["model"][name]) for name in one["model"])
    assert evaluate.main(["--checkpoint", str(whole)]) == 0
    images, output = str(data / "val"), str(tmp_path / "out")
    assert predict.main([images, "--checkpoint", str(whole), "--output", output]) == 0


def test_gradients_that_overflow_are_left_out_and_the_scale_falls(data: Path) -> None:
    sets = [open_dataset("camvid", data, split) for split in ("train", "val")]
    model = ModelConfig(widths=(4, 6), convs=(1, 1), pooled_blocks=2, head_widths=(8,), hidden=8)
    config = TrainConfig(DataConfig(crop=(32, 40)), model, epochs=99, device="cpu", amp="float16")
    trainer = Trainer(config, *sets)
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**60})
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    images, labels = torch.rand(2, 3, 32, 40) * 255, torch.randint(0, 4, (2, 32, 40))
    losses = trainer.step(images, labels)
    assert all(0 < value < 10 for value in losses.values())
    assert all(value.equal(before[name]) for name, value in trainer.model.named_parameters())
    assert trainer.scaler.get_scale() == 2.0**59
    for _ in range(50):
        trainer.step(images, labels)
    assert not trainer.model.potentials["unary"].hidden.weight.equal(
        before["potentials.unary.hidden.weight"]
    )
