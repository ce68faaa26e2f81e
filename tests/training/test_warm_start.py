"""Pairwise networks that start from a trained unary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import TINY_MODEL, write_camvid

from deepcrf_ext.config import DataConfig, ModelConfig, TrainConfig
from deepcrf_ext.data import open_dataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_checkpoint
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.trainer import Trainer

MODEL = replace(TINY_MODEL, potentials="all")


def test_relations_start_as_the_product_of_two_unaries() -> None:
    torch.manual_seed(0)
    model = DeepCRF(MODEL, 4).eval()
    model.start_relations_from_unary()
    energies = model.energies(torch.rand(2, 3, 30, 26) * 255)
    unary = energies.unaries["unary"]
    for name in ("surrounding", "above_below"):
        potential = energies.pairwise[name]
        first, second = potential.graph.edge_index()
        expected = unary[first][:, :, None] + unary[second][:, None]
        torch.testing.assert_close(potential.energies(), expected)


def test_relations_keep_networks_of_their_own() -> None:
    model = DeepCRF(MODEL, 4)
    model.start_relations_from_unary()
    parameters = [id(p) for network in model.potentials.values() for p in network.parameters()]
    assert len(set(parameters)) == len(parameters)
    storages = {p.data_ptr() for p in model.parameters()}
    assert len(storages) == len(parameters)


def write_data(root: Path) -> Path:
    write_camvid(root, "train")
    return write_camvid(root, "val")


def make_trainer(root: Path, model: ModelConfig = MODEL, epochs: int = 4) -> Trainer:
    config = TrainConfig(
        DataConfig("camvid", root, crop=(32, 40)),
        model,
        epochs=epochs,
        batch_size=2,
        warm_start=0.5,
        device="cpu",
    )
    return Trainer(
        config, open_dataset("camvid", root, "train"), open_dataset("camvid", root, "val")
    )


def test_unaries_train_first_and_everything_afterwards(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    trainer = make_trainer(root)
    relations = list(trainer.model.potentials.values())[2:4]
    before = [p.clone() for part in relations for p in part.parameters()]
    steps: list[tuple[int, tuple[str, ...], bool]] = []
    step = trainer.step

    def watched(images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        epoch = trainer.progress.epoch
        losses = step(images, labels)
        after = [p for part in relations for p in part.parameters()]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        steps.append((epoch, tuple(losses), same))
        return losses

    trainer.step = watched  # type: ignore[method-assign]
    folder = tmp_path / "run"
    folder.mkdir()
    assert trainer.fit(folder, StopRequest())
    unaries = ("unary", "unary_1scale")
    for epoch, names, untouched in steps:
        assert names == (unaries if epoch < 2 else trainer.model.potential_names)
        assert untouched == (epoch < 2)
    assert load_checkpoint(folder / "best.pt")["epoch"] > 2


def test_model_without_a_unary_starts_all_at_once(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    model = ModelConfig(
        widths=(4,), convs=(1,), pooled_blocks=1, head_widths=(5,), potentials=("surrounding",)
    )
    assert [stage.potentials for stage in make_trainer(root, model).stages] == [("surrounding",)]


def test_pairwise_layer_must_hold_two_unaries() -> None:
    narrow = ModelConfig(hidden=8, pairwise_hidden=15)
    with pytest.raises(InputError, match=r"model\.pairwise_hidden: got 15, .* twice"):
        TrainConfig(model=narrow)
    assert TrainConfig(model=narrow, warm_start=0.0).warm_start == 0
