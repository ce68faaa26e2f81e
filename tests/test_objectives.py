"""What a training step minimises, and that a batch in parts has the gradient of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import write_camvid

from deepcrf_ext.config import DataConfig, ModelConfig, TrainConfig
from deepcrf_ext.data import open_dataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.training.trainer import Trainer

K = 11
MODEL = ModelConfig(
    widths=(4, 6),
    convs=(1, 1),
    pooled_blocks=2,
    head_widths=(5,),
    hidden=3,
    pairwise_hidden=8,
    batch_norm=False,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    write_camvid(folder, "train")
    return write_camvid(folder, "val")


def make_trainer(root: Path, **settings) -> Trainer:
    data = DataConfig("camvid", root, crop=(32, 40))
    settings = {"batch_size": 5, "warm_start": 0.0, "amp": False, "device": "cpu", **settings}
    config = TrainConfig(data, MODEL, **settings)
    return Trainer(
        config, open_dataset("camvid", root, "train"), open_dataset("camvid", root, "val")
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Five images with ignored pixels: none of the first's, all of the second's, and between."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, K, (5, 32, 40), generator=generator)
    for index, share in enumerate((0.0, 1.0, 0.2, 0.5, 0.9)):
        labels[index][torch.rand(32, 40, generator=generator) < share] = 255
    return torch.rand(5, 3, 32, 40, generator=generator) * 255, labels


@pytest.mark.parametrize("size", [(1, 1), (30, 26), (7, 61)])
def test_count_is_what_the_loss_divides_by(size: tuple[int, int]) -> None:
    model = DeepCRF(MODEL, K)
    images = torch.rand(2, 3, *size) * 255
    labels = torch.randint(0, K, (2, *size))
    labels[:, size[0] // 2 :] = 255
    _, height, width = model.energies(images).grid
    assert model.grid_size(*size) == (height, width)
    rows = ((torch.arange(height) + 0.5) * size[0] / height).long()
    columns = ((torch.arange(width) + 0.5) * size[1] / width).long()
    known = (labels[:, rows][:, :, columns] != 255).flatten()
    assert model.loss_count("unary", labels) == known.sum()
    graph = model.energies(images).pairwise["surrounding"].graph
    first, second = graph.edge_index()
    assert model.loss_count("surrounding", labels) == (known[first] & known[second]).sum()


@pytest.mark.parametrize("accumulate", [2, 4, 5])
def test_batch_in_parts_makes_the_step_of_the_whole(root: Path, accumulate: int) -> None:
    whole, parts = make_trainer(root), make_trainer(root, accumulate=accumulate)
    expected, losses = whole._step(*batch()), parts._step(*batch())
    assert losses == pytest.approx(expected, rel=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert a.grad.abs().max() > 0
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6 * float(a.grad.abs().max()))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7)


def test_batch_without_labels_leaves_the_losses_at_zero(root: Path) -> None:
    trainer = make_trainer(root, accumulate=2)
    images, labels = batch()
    losses = trainer._step(images, torch.full_like(labels, 255))
    assert set(losses.values()) == {0.0}
    assert all((p.grad == 0).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("accumulate", [0, 6])
def test_no_more_parts_than_images(accumulate: int) -> None:
    with pytest.raises(InputError, match=f"accumulate: {accumulate} must be 1 to batch_size, 5"):
        TrainConfig(batch_size=5, accumulate=accumulate)
