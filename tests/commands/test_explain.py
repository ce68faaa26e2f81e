"""What a CRF has learnt and why it labels as it does: exact sums, and the command's files."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_run import NUM_CLASSES, write_run

from deepcrf_ext import EdgeGraph, FactoredPotential, explain, reference
from deepcrf_ext.config import ModelConfig
from deepcrf_ext.data import open_dataset, to_tensors
from deepcrf_ext.explain import main
from deepcrf_ext.explanation import analysis
from deepcrf_ext.explanation.analysis import (
    compatibility,
    explain_node,
    log_ratio_to_chance,
    node_messages,
)
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.nn.node_losses import node_labels
from deepcrf_ext.records.checkpoint import load_model


def test_messages_of_the_neighbours_are_the_nodes_message() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 7, (2, 40), generator=generator)
    graph = EdgeGraph.from_edges(first, second, 8)  # duplicates, self loops, an isolated node
    source, target = torch.randn(2, 8, 5, generator=generator).unbind()
    weight = torch.randn(3, 3, 5, generator=generator)
    bias = torch.randn(3, 3, generator=generator)
    potential = FactoredPotential(graph, source, target, weight, bias)
    marginals = torch.randn(8, 3, generator=generator).softmax(1)
    expected = reference.pairwise_messages(potential, marginals)
    for node in range(8):
        neighbours, messages = node_messages(potential, marginals, node)
        torch.testing.assert_close(messages.sum(0), expected[node])
        joined = {int(q) for p, q in zip(first, second, strict=True) if p == node}
        joined |= {int(p) for p, q in zip(first, second, strict=True) if q == node}
        assert neighbours.tolist() == sorted(joined)


def test_log_odds_in_the_end_are_the_unarys_and_all_gains() -> None:
    torch.manual_seed(0)
    config = ModelConfig(widths=(4, 6), convs=(1, 1), pooled_blocks=2, head_widths=(8,), hidden=8)
    model = DeepCRF(config, 5).eval()
    with torch.no_grad():
        energies = model.energies(torch.rand(1, 3, 24, 30) * 255)
        row = model.default_variant()
        end, begin = model.marginals(energies, row)[0], model.marginals(energies, row, 0)[0]
    _, height, width = energies.grid
    changed = 0
    for node in itertools.product(range(height), range(width)):
        found = explain_node(model, energies, row, node)
        chances = end[:, node[0], node[1]]
        assert found.label == chances.argmax()
        start = int(begin[:, node[0], node[1]].argmax())
        runner_up = int(chances.topk(2).indices[1])
        assert found.against == (start if start != found.label else runner_up)
        changed += start != found.label
        odds = (chances[found.label] / chances[found.against]).log()
        total = found.unary + sum(found.sums.values())
        assert total == pytest.approx(float(odds), rel=1e-3, abs=1e-3)
        torch.testing.assert_close(found.unary_probabilities, begin[:, node[0], node[1]])
        assert all(gain[node].isnan() for gain in found.gains.values())
    assert changed > 0
    with pytest.raises(ValueError, match="grid"):
        explain_node(model, energies, row, (0, 999))
    with pytest.raises(ValueError, match="unary"):
        explain_node(model, energies, Variant(None, ("surrounding",)), (0, 0))


def test_compatibility_is_the_mean_over_all_edges(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(analysis, "_CHUNK_VALUES", 128 * 7)  # several chunks an image
    model, config, _ = load_model(run)
    dataset = open_dataset("camvid", config.data.root, "val")
    table = compatibility(model, dataset, ("above_below",), amp=False)["above_below"]
    energies, counts = [], torch.zeros(NUM_CLASSES, NUM_CLASSES)
    for index in range(len(dataset)):
        image, labels = to_tensors(dataset[index])
        with torch.no_grad():
            found = model.energies(image[None], ["above_below"])
        potential = found.pairwise["above_below"]
        energies.append(potential.energies())
        nodes = node_labels(labels[None], found.grid[1:])
        for p, q in potential.graph.edge_index().T.tolist():
            if nodes[p] != 255 and nodes[q] != 255:
                counts[nodes[p], nodes[q]] += 1
    every = torch.cat(energies).detach()
    torch.testing.assert_close(table.energies.float(), every.mean(0), rtol=1e-4, atol=1e-4)
    learnt = (-every).flatten(1).softmax(1).mean(0).view(NUM_CLASSES, NUM_CLASSES)
    torch.testing.assert_close(table.learnt.float(), learnt, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(table.labelled.float(), counts / counts.sum())


def test_affinity_leaves_out_what_one_label_says_alone() -> None:
    rows, columns = torch.randn(2, 4, dtype=torch.float64).unbind()
    pair = torch.zeros(4, 4, dtype=torch.float64)
    pair[1, 2] = -8
    zeros = torch.zeros_like(pair)
    alone = analysis.Compatibility(rows[:, None] + columns, zeros, zeros)
    torch.testing.assert_close(alone.affinity, zeros)
    both = analysis.Compatibility(rows[:, None] + columns + pair, zeros, zeros)
    assert both.affinity.argmax() == 1 * 4 + 2
    torch.testing.assert_close(both.affinity.sum(0), torch.zeros(4, dtype=torch.float64))


def test_ratio_to_chance() -> None:
    independent = torch.tensor([0.5, 0.3, 0.2])[:, None] * torch.tensor([0.6, 0.3, 0.1])
    torch.testing.assert_close(log_ratio_to_chance(independent), torch.zeros(3, 3))
    pairs = torch.tensor([[0.5, 0.0, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]])
    ratio = log_ratio_to_chance(pairs)
    assert ratio[1, 1] == 1
    assert ratio[0, 1] == -torch.inf
    assert ratio[2].isnan().all()
    assert ratio[:, 2].isnan().all()


def test_compatibility_command(run: Path, tmp_path: Path, capsys) -> None:
    arguments = ["compatibility", "--checkpoint", str(run), "--output", str(tmp_path)]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "compatibility.json").read_text())
    assert list(report["relations"]) == ["surrounding", "above_below"]
    table = report["relations"]["above_below"]
    assert (table["rows"], table["columns"]) == ("above is", "below is")
    assert np.sum(table["pairs_expected"]) == pytest.approx(1)
    assert report["command"].startswith("python -m deepcrf_ext.explain compatibility --checkpoint")
    for name in report["relations"]:
        assert cv2.imread(str(tmp_path / f"compatibility-{name}.png")).shape[1] > 600
    assert "above is" in capsys.readouterr().out


def test_pairs_go_together_or_apart(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def made_up(*arguments):
        energies = torch.zeros(NUM_CLASSES, NUM_CLASSES)
        energies[:2, :2] = torch.tensor([[-1, 1], [1, -1]])
        tables = compatibility(*arguments)
        return {name: replace(table, energies=energies) for name, table in tables.items()}

    monkeypatch.setattr(explain, "compatibility", made_up)
    assert main(["compatibility", "--checkpoint", str(run), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for title, gain in (("together", "+1.0"), ("apart", "-1.0")):
        lists = re.findall(f"{title}: (.*)", printed)
        assert [re.findall(r"[+-][\d.]+", pairs) for pairs in lists] == [[gain, gain]] * 2


@pytest.mark.parametrize("source", ["file", "index"])
def test_image_command(run: Path, tmp_path: Path, capsys, source: str) -> None:
    dataset = open_dataset("camvid", load_model(run)[1].data.root, "val")
    picture = tmp_path / "photo.png"
    cv2.imwrite(str(picture), dataset[1].image[..., ::-1])
    chosen = [str(picture)] if source == "file" else ["--index", "1"]
    output = tmp_path / "out"
    options = ["--checkpoint", str(run), "--at", "7,20", "--output", str(output)]
    assert main(["image", *chosen, *options]) == 0
    (file,) = output.glob("*.json")
    record = json.loads(file.read_text())
    assert record["command"].startswith("python -m deepcrf_ext.explain image")
    assert file.stem == ("explain-photo-7-20" if source == "file" else "explain-1-7-20")
    assert ("truth" in record) == (source == "index" and dataset[1].labels[20, 7] != 255)
    odds = record["log_odds"]
    assert odds["total"] == pytest.approx(sum(odds.values()) - odds["total"])
    gains = sum(item["nats"] for item in record["neighbours"])
    assert gains == pytest.approx(odds["total"] - odds["unary"], rel=1e-4, abs=1e-4)
    nats = [abs(item["nats"]) for item in record["neighbours"]]
    assert nats == sorted(nats, reverse=True)
    height, width = dataset[1].labels.shape
    rows, columns = load_model(run)[0].grid_size(height, width)
    for item in record["neighbours"]:
        row, column = item["node"]
        centre = [(column + 0.5) * width / columns, (row + 0.5) * height / rows]
        assert item["pixel"] == pytest.approx(centre, abs=0.051)  # rounded to tenths
    assert cv2.imread(str(file.with_suffix(".png"))).shape[1] > 600
    assert record["label"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["image", "--at", "1,1"], "--index"),
        (["image", "--index", "9", "--at", "1,1"], "--index"),
        (["image", "--index", "0", "--at", "1"], "--at"),
        (["image", "--index", "0", "--at", "99,1"], "--at"),
        (["image", "--index", "0", "--at", "1,1", "--row", "unary-3scales"], "--row"),
        (["image", "/not/here.png", "--at", "1,1"], "/not/here.png"),
        (["compatibility", "--data.dataset", "scenes"], "classes"),
    ],
)
def test_bad_arguments_end_in_one_line(run: Path, capsys, arguments, named) -> None:
    assert main([*arguments, "--checkpoint", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error


def test_model_without_relations_has_nothing_to_explain(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", tmp_path / "data", potentials=("unary",))
    assert main(["compatibility", "--checkpoint", str(run)]) == 2
    assert "no pairwise potentials" in capsys.readouterr().err
