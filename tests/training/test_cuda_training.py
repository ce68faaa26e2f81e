"""Training over the CUDA kernels, under autocast as a GPU has it: the losses of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from targets import Target
from tiny_run import write_camvid

from deepcrf_ext.config import DataConfig, ModelConfig, ObjectiveName, TrainConfig
from deepcrf_ext.data import open_dataset
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.trainer import Trainer

MODEL = ModelConfig(
    widths=(4, 6),
    convs=(1, 1),
    pooled_blocks=2,
    head_widths=(5,),
    scales=(1.0,),
    hidden=3,
    pairwise_hidden=8,
    potentials=("unary", "surrounding", "above_below"),
)
BALANCES = ("none", "median_frequency")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    write_camvid(folder, "train", 2)
    return write_camvid(folder, "val", 1)


def make_trainer(root: Path, objective: ObjectiveName, balance: str, device: str) -> Trainer:
    config = TrainConfig(
        DataConfig("camvid", root, crop=(16, 20)),
        MODEL,
        objective=objective,
        batch_size=2,
        warm_start=0.0,
        amp=True,
        device=device,
    )
    trainer = Trainer(
        config, open_dataset("camvid", root, "train"), open_dataset("camvid", root, "val")
    )
    if balance != "none":
        trainer.model.class_weights = torch.linspace(0.5, 2, 11, device=trainer.device)
    trainer.model.train()
    return trainer


def step_losses(trainer: Trainer) -> list[float]:
    """Of two steps on one batch."""
    generator = torch.Generator().manual_seed(1)
    images = 255 * torch.rand(2, 3, 16, 20, generator=generator)
    labels = torch.randint(0, 11, (2, 16, 20), generator=generator)
    labels[0, :7] = 255
    return [loss for _ in range(2) for loss in trainer.step(images, labels).values()]


@pytest.fixture(scope="module")
def cpu_losses(root: Path) -> dict[tuple[str, str], list[float]]:
    """By objective and balance; formed before any other target is active."""
    return {
        (objective, balance): step_losses(make_trainer(root, objective, balance, "cpu"))
        for objective in get_args(ObjectiveName)
        for balance in BALANCES
    }


@pytest.mark.parametrize(
    ("objective", "balance"),
    [
        *(("piecewise", balance) for balance in BALANCES),
        ("pseudo_likelihood", "none"),
        ("end_to_end", "none"),
    ],
)
def test_steps_have_the_losses_of_the_cpu(
    cpu_losses: dict[tuple[str, str], list[float]],
    root: Path,
    cuda_target: Target,
    objective: ObjectiveName,
    balance: str,
) -> None:
    trainer = make_trainer(root, objective, balance, str(cuda_target.device))
    assert step_losses(trainer) == pytest.approx(cpu_losses[objective, balance], rel=2e-2)


def test_validation(root: Path, cuda_target: Target) -> None:
    trainer = make_trainer(root, "piecewise", "none", str(cuda_target.device))
    names = trainer.model.potential_names
    scores = trainer.validate(names, StopRequest())
    assert list(scores) == ["unary-3scales", "1unary+2pair"]
    assert all(0 < score["nll"] < 10 for score in scores.values())
