"""Label smoothing: what it adds to the losses of the unaries, and to nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import TINY_MODEL, training_options, write_camvid

from deepcrf_ext.data import open_dataset
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.nn.node_losses import node_labels, node_nll
from deepcrf_ext.records.checkpoint import load_checkpoint
from deepcrf_ext.train import main, parse_new_run, parse_resume
from deepcrf_ext.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

K = 4


@pytest.mark.parametrize("weighted", [False, True])
def test_a_share_of_each_label_is_spread_over_all_classes(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    energies = torch.randn(50, K, generator=generator, dtype=torch.float64)
    nodes = torch.randint(0, K, (50,), generator=generator)
    nodes[::4] = 255
    weights = torch.tensor([0.5, 1.0, 4.0, 9.0]) if weighted else None
    known = nodes != 255
    targets = 0.7 * torch.nn.functional.one_hot(nodes[known], K) + 0.3 / K
    values = -(targets * torch.log_softmax(-energies[known], 1)).sum(1)
    counts = torch.ones(len(values)) if weights is None else weights[nodes[known]]
    expected = (counts * values).sum() / counts.sum()
    found = node_nll(energies, nodes, weights, smoothing=0.3)
    torch.testing.assert_close(found, expected)
    assert node_nll(energies, torch.full_like(nodes, 255), weights, smoothing=0.3) == 0


def test_relations_take_labels_as_they_are() -> None:
    torch.manual_seed(0)
    model = DeepCRF(TINY_MODEL, K).eval()
    images, labels = torch.rand(2, 3, 30, 26) * 255, torch.randint(0, K, (2, 30, 26))
    plain = model.losses(images, labels)
    model.label_smoothing = 0.2
    smoothed = model.losses(images, labels)
    energies = model.energies(images)
    nodes = node_labels(labels, energies.grid[1:])
    for name in plain:
        if name in energies.unaries:
            expected = node_nll(energies.unaries[name], nodes, smoothing=0.2)
            torch.testing.assert_close(smoothed[name], expected)
            assert smoothed[name] != plain[name]
        else:
            assert smoothed[name] == plain[name]


def test_a_run_smooths_and_goes_on_smoothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    write_camvid(root, "train")
    write_camvid(root, "val")
    short = ["--epochs", "1", "--warm-start", "0"]
    arguments = training_options(tmp_path, root, tmp_path / "run", *short)
    assert parse_new_run(arguments).label_smoothing == 0
    for value in ("1", "-0.1", "nan"):
        assert main([*arguments, "--label-smoothing", value]) == 2
        assert "label_smoothing: " in capsys.readouterr().err
    assert main([*arguments, "--label-smoothing", "0.1"]) == 0
    assert load_checkpoint(tmp_path / "run" / "last.pt")["config"]["label_smoothing"] == 0.1
    config, path = parse_resume(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    sets = [open_dataset(config.data, split=split, seed=0) for split in ("train", "val")]
    assert Trainer(config, *sets, checkpoint=path).model.label_smoothing == 0.1
