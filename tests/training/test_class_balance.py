"""Class-balanced losses: the weights, what they weigh, and that a run keeps them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import TINY_MODEL, training_options, write_camvid
from torch.nn import functional

import deepcrf_ext as dc
from deepcrf_ext.config import DataConfig, ObjectiveName, TrainConfig
from deepcrf_ext.data import Sample, SegmentationDataset, open_dataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.nn.node_losses import node_labels
from deepcrf_ext.records.checkpoint import load_checkpoint
from deepcrf_ext.train import main as train
from deepcrf_ext.training.class_balance import median_frequency_weights, plain_balance
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.objectives import make_losses
from deepcrf_ext.training.trainer import Trainer

K = 4


class FewLabels(SegmentationDataset):
    classes = ("a", "b", "c", "absent")
    maps = (((0, 0, 0, 1), (255, 255, 255, 255)), ((1, 1, 2, 255), (0, 0, 0, 0)))

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> Sample:
        labels = np.array(self.maps[index], np.uint8)
        return Sample(np.zeros((*labels.shape, 3), np.uint8), labels, str(index))


def test_weights_are_the_median_frequency_over_each() -> None:
    # Labelled pixels: 4 in the first map, 7 in the second; c is in the second alone.
    frequency = np.array([7 / 11, 3 / 11, 1 / 7])
    expected = [*(3 / 11) / frequency, 1.0]
    np.testing.assert_allclose(median_frequency_weights(FewLabels()), expected, rtol=1e-6)


@pytest.fixture
def model() -> DeepCRF:
    torch.manual_seed(0)
    return DeepCRF(TINY_MODEL, K).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, K, (2, 30, 26), generator=generator)
    labels[:, :9] = 255
    return torch.rand(2, 3, 30, 26, generator=generator) * 255, labels


def test_nodes_weigh_as_their_label_and_edges_as_the_geometric_mean(model: DeepCRF) -> None:
    images, labels = batch()
    weights = torch.tensor([0.5, 1.0, 4.0, 9.0])
    model.class_weights = weights
    losses = model.losses(images, labels)
    energies = model.energies(images)
    nodes = node_labels(labels, energies.grid[1:])
    expected = functional.cross_entropy(
        -energies.unaries["unary"], nodes, weight=weights, ignore_index=255
    )
    torch.testing.assert_close(losses["unary"], expected)
    known = nodes != 255
    torch.testing.assert_close(
        model.loss_count("unary", labels).float(), weights[nodes[known]].sum()
    )
    for name, potential in energies.pairwise.items():
        first, second = potential.graph.edge_index()
        valid = known[first] & known[second]
        one, other = nodes[first][valid], nodes[second][valid]
        values = functional.cross_entropy(
            -potential.energies()[valid].flatten(1), one * K + other, reduction="none"
        )
        edges = (weights[one] * weights[other]).sqrt()
        torch.testing.assert_close(losses[name], (edges * values).sum() / edges.sum())
        torch.testing.assert_close(model.loss_count(name, labels).float(), edges.sum())


def test_equal_weights_change_nothing(model: DeepCRF) -> None:
    images, labels = batch()
    expected = model.losses(images, labels)
    sum(expected.values()).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.class_weights = torch.full((K,), 3.0)
    losses = model.losses(images, labels)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_all_ignored_is_zero_loss(model: DeepCRF) -> None:
    model.class_weights = torch.ones(K)
    losses = model.losses(batch()[0], torch.full((2, 30, 26), 255))
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def make_trainer(root: Path, accumulate: int = 1) -> Trainer:
    config = TrainConfig(
        DataConfig("camvid", root, crop=(32, 40)),
        TINY_MODEL,
        epochs=2,
        batch_size=3,
        accumulate=accumulate,
        warm_start=0.0,
        class_balance="median_frequency",
        device="cpu",
    )
    return Trainer(
        config, open_dataset("camvid", root, "train"), open_dataset("camvid", root, "val")
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_counts_once_and_keeps_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    root = tmp_path / "data"
    write_camvid(root, "train")
    write_camvid(root, "val")
    trainer = make_trainer(root, accumulate)
    folder = tmp_path / "run"
    folder.mkdir()
    assert trainer.fit(folder, StopRequest())
    expected = median_frequency_weights(open_dataset("camvid", root, "train"))
    assert trainer.model.class_weights.equal(expected)
    state = load_checkpoint(folder / "last.pt")
    assert torch.tensor(state["class_weights"]).equal(expected)
    assert not any("class_weights" in key for key in state["model"])

    monkeypatch.setattr(
        "deepcrf_ext.training.trainer.median_frequency_weights",
        lambda *arguments: pytest.fail("counted again"),
    )
    again = make_trainer(root, accumulate)
    again.restore(folder / "last.pt")
    assert again.model.class_weights.equal(expected)
    assert again.fit(folder, StopRequest())


@pytest.mark.parametrize("objective", ["pseudo_likelihood", "end_to_end"])
def test_losses_of_a_whole_crf_weigh_its_nodes(model: DeepCRF, objective: ObjectiveName) -> None:
    images, labels = batch()
    weights = torch.tensor([0.5, 1.0, 4.0, 9.0])
    (loss, *_) = make_losses(objective, model, model.potential_names)
    nodes = node_labels(labels, model.grid_size(30, 26))
    energies = model.energies(images)
    unary, potentials = model.crf(energies, model.default_variant())
    if objective == "end_to_end":
        chances = dc.mean_field(unary, potentials, model.config.iterations)
        values = functional.nll_loss(chances.log(), nodes, ignore_index=255, reduction="none")
    else:
        values = dc.pseudo_likelihood_nll(unary, potentials, nodes, 255, reduction="none")
    model.class_weights = weights
    counts = weights[nodes.where(nodes != 255, 0)] * (nodes != 255)
    found = loss.mean(model, model.inputs(images), labels)
    torch.testing.assert_close(found, (counts * values).sum() / counts.sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.count(model, labels).float(), counts.sum())


CLASSES = ("sky", "car", "crack")


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ("none", "none"),
        ("median_frequency", "median_frequency"),
        ((1.0, 2.5, 0.0), (1.0, 2.5, 0.0)),
        ({"crack": 4.0}, (1.0, 1.0, 4.0)),
        ("list.json", (3.0, 2.0, 1.0)),
        ("map of weights.yaml", (0.5, 1.0, 8.0)),
    ],
)
def test_explicit_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: object, expected: object
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[3, 2, 1]", encoding="utf-8")
    Path("map of weights.yaml").write_text("crack: 8\nsky: 0.5\n", encoding="utf-8")
    assert plain_balance(balance, CLASSES) == expected


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ("median_freq", "median_freq is not a file; must be none, median_frequency, a list"),
        ((1.0, 2.0), "got 2 weights, must be 3, one for each of sky, car, crack"),
        ({"crak": 2.0, "dog": 1.0}, "got the classes crak, dog, must be some of sky, car, crack"),
        ((1.0, -1.0, 1.0), "the weight of car is -1.0"),
        ((1.0, float("nan"), 1.0), "the weight of car is nan"),
        ((1.0, float("inf"), 1.0), "the weight of car is inf"),
        ((0.0, 0.0, 0.0), "all weights are 0"),
        ("words.yaml", "the weight of car is 'much'"),
        ("number.yaml", "got 3, must be none"),
        ("damaged.yaml", "damaged.yaml: not YAML or JSON"),
    ],
)
def test_what_cannot_be_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.yaml").write_text("{car: much}", encoding="utf-8")
    Path("number.yaml").write_text("3", encoding="utf-8")
    Path("damaged.yaml").write_text("[1, ", encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        plain_balance(balance, CLASSES)


def test_explicit_weights_weigh_the_losses_and_outlive_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    write_camvid(root, "train")
    write_camvid(root, "val")
    file = tmp_path / "weights.yaml"
    file.write_text("{sky: 0.5, pole: 6}\n")
    run = tmp_path / "run"
    short = ["--epochs", "1", "--warm-start", "0"]
    arguments = [*training_options(tmp_path, root, run, *short), "--class-balance"]
    assert train([*arguments, "{sky: 2, Dog: 1}"]) == 2
    assert "class_balance: got the classes Dog, must be" in capsys.readouterr().err
    assert not run.exists()
    assert train([*arguments, str(file)]) == 0
    file.unlink()
    state = load_checkpoint(run / "last.pt")
    expected = [{"sky": 0.5, "pole": 6.0}.get(name, 1.0) for name in state["classes"]]
    assert state["class_weights"] == state["config"]["class_balance"] == expected
    assert train(["--resume", str(run), "--epochs", "2"]) == 0
    assert load_checkpoint(run / "last.pt")["class_weights"] == expected
