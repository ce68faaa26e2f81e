"""Dropout of the features of nodes: in training alone, and the same after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import training_options, write_learnable_camvid
from torch import nn

from deepcrf_ext import train
from deepcrf_ext.config import ModelConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.features import BackboneFeatures, FeatureNet
from deepcrf_ext.records.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ModelConfig(
    widths=(4, 6),
    convs=(1, 1),
    pooled_blocks=2,
    head_widths=(8,),
    hidden=6,
    pairwise_hidden=12,
    dropout=0.25,
)


@pytest.mark.parametrize("own_backbone", [False, True])
def test_a_share_of_the_features_is_left_out_in_training(own_backbone: bool) -> None:
    torch.manual_seed(0)
    maps = [torch.rand(2, 6, 40, 50) + 0.5]
    config = replace(TINY, head_widths=(), share_blocks=True)
    features = BackboneFeatures(6, 0.25) if own_backbone else FeatureNet(config, 1)
    expected = maps[0].permute(0, 2, 3, 1)
    dropped = features(maps)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped[kept], expected[kept] / 0.75)
    assert features.eval()(maps).equal(expected)


def test_every_potential_of_any_model_has_it() -> None:
    images, labels = torch.rand(1, 3, 32, 40) * 255, torch.zeros(1, 32, 40, dtype=torch.long)
    for backbone in (None, nn.Conv2d(3, 5, 4, 4)):
        model = DeepCRF(TINY, 3, backbone)
        first, second = model.losses(images, labels), model.losses(images, labels)
        assert all(not first[name].equal(second[name]) for name in model.potential_names)
        model.eval()
        first, second = model.losses(images, labels), model.losses(images, labels)
        assert all(first[name].equal(second[name]) for name in model.potential_names)


def test_a_resumed_run_drops_what_it_would_have_dropped(tmp_path: Path) -> None:
    root = tmp_path / "camvid"
    root.mkdir()
    write_learnable_camvid(root, train=4, val=1)
    more = ["--model.dropout", "0.5", "--optim.schedule", "exponential", "--warm-start", "0"]
    for run, epochs in (("whole", "2"), ("halves", "1")):
        arguments = training_options(tmp_path, root, tmp_path / run, *more, "--epochs", epochs)
        assert train.main(arguments) == 0
    assert train.main(["--resume", str(tmp_path / "halves"), "--epochs", "2"]) == 0
    whole, halves = (
        load_checkpoint(tmp_path / r / "last.pt")["model"] for r in ("whole", "halves")
    )
    assert all(whole[name].equal(halves[name]) for name in whole)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_bad_shares(share: float) -> None:
    with pytest.raises(InputError, match="model.dropout"):
        ModelConfig(dropout=share)
