"""What a training step minimises, and that a batch in parts has the gradient of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import oracle
import pytest
import torch
from tiny_run import TINY_MODEL, write_camvid
from torch.nn.functional import nll_loss

from deepcrf_ext import EdgeGraph, TablePotential, mean_field, reference
from deepcrf_ext.config import DataConfig, ObjectiveName, TrainConfig
from deepcrf_ext.data import open_dataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import VARIANTS, DeepCRF
from deepcrf_ext.training.objectives import make_losses, mean_field_nll
from deepcrf_ext.training.trainer import Trainer

K = 11
MODEL = replace(TINY_MODEL, batch_norm=False, potentials="all")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    write_camvid(folder, "train", count=5)
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


def tiny_crf() -> tuple[DeepCRF, list[torch.Tensor], torch.Tensor]:
    """A model, two images of 3 x 4 nodes, and their labels."""
    torch.manual_seed(0)
    model = DeepCRF(MODEL, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # spreads the energies
    labels = torch.randint(0, 3, (2, 10, 12))
    labels[0, :4] = 255
    return model, model.pyramid(torch.rand(2, 3, 10, 12) * 255), labels


def gradients(model: DeepCRF, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("objective", ["pseudo_likelihood", "end_to_end"])
def test_crf_loss_is_what_the_oracle_says_and_trains_all_of_the_crf(
    objective: ObjectiveName,
) -> None:
    model, pyramid, labels = tiny_crf()
    model.set_relation_weights({"surrounding": 0.7, "above_below": 1.2})
    row = VARIANTS["1unary+2pair"]
    energies = model.energies_of(pyramid, row.potentials)
    assert energies.grid == (2, 3, 4)
    unary, potentials = model.crf(energies, row)
    nodes = labels[:, [1, 5, 8]][:, :, [1, 4, 7, 10]].flatten()
    valid = (nodes != 255).tolist()
    edges = [oracle.edges(potential) for potential in potentials]
    if objective == "pseudo_likelihood":
        losses = oracle.pseudo_likelihood_nll(oracle.array(unary), edges, nodes.tolist(), 255)
        plain = reference.pseudo_likelihood_nll(unary, potentials, nodes)
    else:
        marginals = oracle.mean_field(oracle.array(unary), edges, iterations=2)
        losses = -np.log(marginals[np.arange(24), nodes.where(nodes != 255, 0)]) * valid
        log = reference.mean_field(unary, potentials, iterations=2).log()
        plain = nll_loss(log, nodes, ignore_index=255)
    crf, further = make_losses(objective, model, model.potential_names)
    loss = crf.mean(model, pyramid, labels)
    assert float(loss.detach()) == pytest.approx(losses.sum() / sum(valid), rel=1e-5)
    own, wanted = gradients(model, loss), gradients(model, plain)
    for name in model.potential_names:
        for key in (key for key in own if key.startswith(f"potentials.{name}.")):
            assert (own[key] is None) == (wanted[key] is None) == (name == "unary_1scale")
            if own[key] is not None:
                scale = float(wanted[key].abs().max())
                torch.testing.assert_close(own[key], wanted[key], rtol=1e-3, atol=1e-4 * scale)
    assert further.name == "unary_1scale"
    assert further.mean(model, pyramid, labels) == model.loss("unary_1scale", pyramid, labels)


@pytest.mark.parametrize("objective", ["pseudo_likelihood", "end_to_end"])
def test_the_unary_alone_counts_beside_the_crf(objective: ObjectiveName) -> None:
    model, pyramid, labels = tiny_crf()
    model.class_weights = torch.tensor([0.5, 1.0, 3.0])
    alone = model.loss("unary", pyramid, labels)
    (plain, _) = make_losses(objective, model, model.potential_names)
    (both, further) = make_losses(objective, model, model.potential_names, unary_loss=0.4)
    wanted = plain.mean(model, pyramid, labels) + 0.4 * alone
    torch.testing.assert_close(both.mean(model, pyramid, labels), wanted)
    assert further.mean(model, pyramid, labels) == model.loss("unary_1scale", pyramid, labels)
    (relation, *_) = make_losses("piecewise", model, ["surrounding"], unary_loss=0.4)
    assert relation.mean(model, pyramid, labels) == model.loss("surrounding", pyramid, labels)


def test_a_crf_without_a_unary_has_none_beside_it() -> None:
    model = DeepCRF(replace(MODEL, potentials=("surrounding",)), 3)
    labels = torch.randint(0, 3, (1, 10, 12))
    pyramid = model.pyramid(torch.rand(1, 3, 10, 12) * 255)
    losses = [make_losses("end_to_end", model, ["surrounding"], share)[0] for share in (0.0, 0.4)]
    values = [loss.mean(model, pyramid, labels) for loss in losses]
    assert values[0] == values[1]


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_what_the_unary_counts_must_be_a_share(value: float) -> None:
    with pytest.raises(InputError, match=f"unary_loss: got {value}, must be finite"):
        TrainConfig(unary_loss=value)


def test_a_run_trains_by_what_the_unary_counts(root: Path) -> None:
    images, labels = batch()
    losses = [
        make_trainer(root, objective="end_to_end", unary_loss=share).step(images, labels)
        for share in (0.0, 2.0)
    ]
    name = "1unary+2pair"
    assert losses[1][name] > losses[0][name] + 1


def test_marginals_without_iterations_are_the_unarys() -> None:
    model, pyramid, labels = tiny_crf()
    model.config = replace(model.config, iterations=0)
    crf = make_losses("end_to_end", model, model.potential_names)[0]
    loss, unary = crf.mean(model, pyramid, labels), model.loss("unary", pyramid, labels)
    torch.testing.assert_close(loss, unary)


def test_marginals_that_round_to_zero_still_train() -> None:
    graph = EdgeGraph.from_edges(torch.tensor([0]), torch.tensor([1]), 2)
    table = torch.full((1, 2, 2), 400.0)
    table[0, 0, 0] = 0  # both nodes 0: the labels (1, 1) have a probability of exp(-800) or so
    table.requires_grad_()
    labels = torch.tensor([1, 1])
    marginals = mean_field(torch.zeros(2, 2), [TablePotential(graph, table)], 2)
    assert float(marginals.detach()[0, 1]) == 0
    loss = mean_field_nll(torch.zeros(2, 2), [TablePotential(graph, table)], labels, 2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(400, rel=0.01)
    assert torch.isfinite(table.grad).all()
    assert float(table.grad[0, 1, 1]) == 0
    assert float(table.grad[0, 0, 0]) < -0.5


def test_a_model_without_relations_has_one_loss_a_unary() -> None:
    model = DeepCRF(replace(MODEL, potentials=("unary", "unary_1scale")), 3)
    images, labels = torch.rand(1, 3, 10, 12) * 255, torch.randint(0, 3, (1, 10, 12))
    pyramid = model.pyramid(images)
    crf, further = make_losses("pseudo_likelihood", model, model.potential_names)
    wanted = model.losses(images, labels)
    torch.testing.assert_close(crf.mean(model, pyramid, labels), wanted["unary"])
    torch.testing.assert_close(further.mean(model, pyramid, labels), wanted["unary_1scale"])


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
@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_batch_in_parts_makes_the_step_of_the_whole(
    root: Path, objective: ObjectiveName, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_trainer(root, objective=objective)
    parts = make_trainer(root, objective=objective, accumulate=accumulate)
    sizes, inputs = [], parts.model.inputs

    def sized(images: torch.Tensor, potentials: Sequence[str]) -> list[torch.Tensor]:
        sizes.append(len(images))
        return inputs(images, potentials)

    monkeypatch.setattr(parts.model, "inputs", sized)
    expected, losses = whole.step(*batch()), parts.step(*batch())
    assert (sum(sizes), len(sizes), max(sizes)) == (5, accumulate, -(-5 // accumulate))
    assert losses == pytest.approx(expected, rel=1e-5)
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert a.grad.abs().max() > 0 or (name.endswith("log_weight") and objective == "piecewise")
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6 * float(a.grad.abs().max()))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_step_in_mixed_precision(root: Path) -> None:
    """Convolutions compute in bfloat16; losses and weights are float32 and nearly as without."""
    plain, mixed = make_trainer(root), make_trainer(root, amp=True)
    seen = set()
    for layer in mixed.model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    expected, losses = plain.step(*batch()), mixed.step(*batch())
    assert seen == {torch.bfloat16}
    assert losses == pytest.approx(expected, rel=2e-2)
    assert losses != expected
    for a, b in zip(plain.model.parameters(), mixed.model.parameters(), strict=True):
        assert b.dtype == b.grad.dtype == torch.float32
        assert (b.grad - a.grad).norm() <= 0.1 * a.grad.norm()


def test_batch_without_labels_leaves_the_losses_at_zero(root: Path) -> None:
    trainer = make_trainer(root, accumulate=2)
    images, labels = batch()
    losses = trainer.step(images, torch.full_like(labels, 255))
    assert set(losses.values()) == {0.0}
    assert all((p.grad == 0).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("accumulate", [0, 6])
def test_no_more_parts_than_images(accumulate: int) -> None:
    with pytest.raises(InputError, match=f"accumulate: got {accumulate}, must be 1 to batch_size"):
        TrainConfig(batch_size=5, accumulate=accumulate)
