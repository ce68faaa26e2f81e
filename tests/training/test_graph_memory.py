"""Images whose graphs would not fit into memory: told before training, and measured in windows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from own_data import add_pair, write_blobs
from tiny_run import lines

from deepcrf_ext import evaluate, train
from deepcrf_ext.config import DataConfig, DataSource, TrainConfig
from deepcrf_ext.data import LabelledPairs, open_dataset
from deepcrf_ext.evaluation.views import ONE_VIEW
from deepcrf_ext.nn import grid_graphs
from deepcrf_ext.ops._device_cache import DeviceCache
from deepcrf_ext.ops._flat_tensors import graph_tensors
from deepcrf_ext.training import graph_memory

OPTIONS = [
    *("--data.dataset", "folder", "--data.classes", "[ground, ball]", "--epochs", "1"),
    *("--model.widths", "[4, 6]", "--model.hidden", "3", "--model.pairwise-hidden", "6"),
    *("--data.scale-range", "null", "--batch-size", "2", "--model.head-widths", "[5]"),
]
LARGEST = "images in windows of 16x12 pixels, as data.crop: the graphs of the largest, 56x40 pixels"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose whole images are too large, and no graph of such a size kept from before."""
    monkeypatch.setattr(grid_graphs, "available_memory", lambda _: 40_000)
    monkeypatch.setattr(grid_graphs, "_CACHE", DeviceCache(1 << 20, graph_tensors))
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


def test_images_that_are_no_files_are_taken_to_fit() -> None:
    pairs = LabelledPairs([(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8))], ("a",))
    views = graph_memory.validation_views(TrainConfig(), None, pairs, torch.device("cpu"))
    assert views == (ONE_VIEW, "")


def test_the_largest_image_is_the_one_with_the_most_edges(tmp_path: Path) -> None:
    """Their number grows with the pixels and with the square of the short side."""
    root = write_blobs(tmp_path / "data", 1)
    for index, size in enumerate(((90, 20), (60, 50), (20, 95))):
        add_pair(
            root / f"images/long/{index}.png",
            root / f"masks/long/{index}.png",
            np.zeros(size, np.uint8),
        )
    source = DataSource("folder", root, classes=("ground", "ball"))
    dataset = open_dataset(source, split="long")
    assert graph_memory._largest_size(dataset) == (60, 50)


@pytest.mark.parametrize(
    ("images", "processes", "accumulate", "at_a_time"),
    [(100, 1, 1, 8), (5, 1, 1, 5), (100, 3, 1, 3), (100, 2, 3, 2)],
)
def test_a_part_of_a_batch_is_checked(
    images: int, processes: int, accumulate: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(graph_memory, "_check", lambda _, count, grid, device: tried.append(count))
    model = SimpleNamespace(grid_size=lambda *size: size)
    config = TrainConfig(DataConfig(crop=(12, 16)), batch_size=8, accumulate=accumulate)
    graph_memory.check_crop_memory(config, model, images, processes, torch.device("cpu"))
    assert tried == [at_a_time]


def test_no_crops_no_windows(root: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    arguments = [*OPTIONS, "--data.root", str(root), "--output", str(run)]
    assert train.main([*arguments, "--data.crop", "null"]) == 2
    assert "error: data.crop: must be set, as validation images of 56x40" in capsys.readouterr().err
    assert not run.exists()
