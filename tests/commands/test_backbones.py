"""A network of a library as the backbone: trained from its weights, continued, measured."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from own_data import write_blobs
from torch import Tensor, nn

from deepcrf_ext import evaluate, predict, train
from deepcrf_ext.records.checkpoint import load_checkpoint, load_model

SETTINGS = """
model: {backbone: "timm:tiny", share_blocks: true, widths: [8, 8, 12], convs: [1, 1, 1],
  pooled_blocks: 2, head_widths: [12], hidden: 8, pairwise_hidden: 16}
data: {dataset: folder, classes: [ground, blob], crop: [40, 56], scale_range: null}
optim: {optimiser: adamw}
epochs: 3
warm_start: 0.3
batch_size: 3
amp: false
"""


class Tiny(nn.Sequential):
    """Strides 2 to 32 and a classifier."""

    def __init__(self) -> None:
        stages = [
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o in ((3, 4), (4, 6), (6, 8), (8, 8), (8, 8))
        ]
        super().__init__(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        self.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, settings and weights, and a library that has one network."""
    timm = types.ModuleType("timm")
    timm.create_model = lambda name, pretrained: Tiny()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    torch.manual_seed(3)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    write_blobs(tmp_path / "data", 1)
    return tmp_path


def test_train_from_weights_continue_evaluate_and_predict(place: Path, capsys) -> None:
    arguments = ["--config", "settings.yaml", "--data.root", "data", "--output", "run"]
    assert train.main([*arguments, "--backbone_weights", "tiny.pth"]) == 0
    out = capsys.readouterr().out
    assert "tiny.pth: 35 of 35 tensors taken; 2 of the file left (7.weight, 7.bias)" in out
    state = load_checkpoint(place / "run" / "last.pt")
    assert len(state["initialised"]) == 20
    assert all(name.startswith("blocks.maps.network.") for name in state["initialised"])
    (place / "tiny.pth").unlink()
    assert train.main(["--resume", "run", "--epochs", "4"]) == 0
    assert load_model("run")[1].model.backbone == "timm:tiny"
    assert evaluate.main(["--checkpoint", "run", "--rows", "all"]) == 0
    photo = next((place / "data").rglob("*.jpg"))
    assert predict.main([str(photo), "--checkpoint", "run", "--output", "out"]) == 0


def test_every_potential_may_have_a_backbone_of_its_own(place: Path) -> None:
    arguments = ["--config", "settings.yaml", "--data.root", "data", "--output", "run"]
    more = ["--model.share_blocks", "false", "--backbone_weights", "tiny.pth", "--epochs", "1"]
    assert train.main([*arguments, *more, "--warm_start", "0"]) == 0
    assert len(load_checkpoint(place / "run" / "last.pt")["initialised"]) == 3 * 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vgg_weights", "tiny.pth"], "vgg_weights: does not go with model.backbone timm:tiny"),
        (["--model.backbone", "vgg", "--backbone_weights", "x"], "backbone_weights: does not go"),
        (["--backbone_weights", "nowhere.pth"], "nowhere.pth: no such file of weights"),
        (["--model.backbone", "resnet18"], "model.backbone: got 'resnet18', must be vgg, timm"),
        (["--model.pooled_blocks", "0"], "model.pooled_blocks: gives the stride 1"),
    ],
)
def test_what_does_not_go_together(place: Path, options: list[str], message: str, capsys) -> None:
    arguments = ["--config", "settings.yaml", "--data.root", "data", "--output", "run"]
    assert train.main([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (place / "run").exists()
