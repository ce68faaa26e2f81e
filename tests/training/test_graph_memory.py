"""Images whose graphs would not fit into memory: told before training, and measured in windows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from own_data import write_blobs
from tiny_run import lines

from deepcrf_ext import evaluate, train
from deepcrf_ext.config import DataConfig, TrainConfig
from deepcrf_ext.nn import grid_graphs
from deepcrf_ext.training import graph_memory

OPTIONS = [
    *("--data.dataset", "folder", "--data.classes", "[ground, ball]", "--epochs", "1"),
    *("--model.widths", "[4, 6]", "--model.hidden", "3", "--model.pairwise-hidden", "6"),
    *("--data.scale-range", "null", "--batch-size", "2", "--model.head-widths", "[5]"),
]
LARGEST = "images in windows of 16x12 pixels, as data.crop: the graphs of the largest, 56x40 pixels"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose whole images are too large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(grid_graphs, "available_memory", lambda _: 40_000)
    return write_blobs(tmp_path / "data", 1)


def test_validation_in_windows(root: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    arguments = [*OPTIONS, "--data.root", str(root), "--output", str(run)]
    assert train.main([*arguments, "--data.crop", "[12, 16]"]) == 0
    assert LARGEST in capsys.readouterr().err
    assert lines(run, "val")[0]["mean_iou"]["1unary+2pair"] > 0
    assert (run / "grid.png").exists()
    assert evaluate.main(["--checkpoint", str(run)]) == 2
    error = capsys.readouterr().err
    assert "error: an image of 56x40 pixels is too large to be seen whole" in error
    assert "(--max-size) or in parts (--window)" in error
    assert evaluate.main(["--checkpoint", str(run), "--window", "[12, 16]"]) == 0


def test_the_grid_of_a_backbone_is_told_by_its_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by a trial run, for which the largest image might be too large."""
    tried: list[tuple[int, int]] = []
    model = SimpleNamespace(backbone="any", grid_size=lambda *size: (size[0] // 4, size[1] // 4))
    monkeypatch.setattr(graph_memory, "_largest_size", lambda dataset: (50, 83))
    monkeypatch.setattr(graph_memory, "_check", lambda _, images, grid, device: tried.append(grid))
    config = TrainConfig(DataConfig(crop=(12, 16)))
    graph_memory.validation_views(config, model, [], torch.device("cpu"))
    assert tried == [(13, 21)]


def test_no_crops_no_windows(root: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    arguments = [*OPTIONS, "--data.root", str(root), "--output", str(run)]
    assert train.main([*arguments, "--data.crop", "null"]) == 2
    assert "error: data.crop: must be set, as validation images of 56x40" in capsys.readouterr().err
    assert not run.exists()
