"""The command that fits the weights of relations, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import write_run

from deepcrf_ext.calibrate import main
from deepcrf_ext.data import open_dataset
from deepcrf_ext.evaluation.calibration import fit_relation_weights
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_checkpoint, load_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_weights_fit_the_split_and_nothing_else_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", tmp_path / "data")
    assert main(["--checkpoint", str(run), "--device", "cpu"]) == 0
    folder = run / "calibrate-camvid-val"
    report = json.loads((folder / "calibration.json").read_text())
    assert report["weights"]["before"] == {"surrounding": 1, "above_below": 1}
    assert report["nll"]["after"] < report["nll"]["before"]
    printed = capsys.readouterr().out.splitlines()
    for line, (name, weight) in zip(printed, report["weights"]["after"].items(), strict=False):
        assert line == f"{name}: weight 1 -> {weight:.4g}"
    assert printed[2].startswith("NLL at the nodes of 3 images: ")
    assert printed[3] == f"Checkpoint: {folder / 'last.pt'}"

    before, after = load_checkpoint(run / "last.pt"), load_checkpoint(folder / "last.pt")
    for key, value in after["model"].items():
        assert key.endswith(".log_weight") or torch.equal(value, before["model"][key])
    assert {key: after[key] for key in ("config", "classes", "epoch")} == {
        key: before[key] for key in ("config", "classes", "epoch")
    }
    model, _, _ = load_model(folder)
    assert model.relation_weights == pytest.approx(report["weights"]["after"])
    alone = DeepCRF.from_pretrained(folder / "weights")
    assert alone.relation_weights == pytest.approx(report["weights"]["after"])

    again = ["--checkpoint", str(folder), "--output", str(tmp_path / "again"), "--max-images", "3"]
    assert main(again) == 0
    second = json.loads((tmp_path / "again/calibration.json").read_text())["nll"]
    assert second["before"] == pytest.approx(report["nll"]["after"], rel=1e-4)
    assert second["after"] <= second["before"]


def test_fewer_images_than_the_split_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", tmp_path / "data")
    assert main(["--checkpoint", str(run), "--max-images", "2"]) == 0
    assert "NLL at the nodes of 2 images" in capsys.readouterr().out
    report = json.loads((run / "calibrate-camvid-val" / "calibration.json").read_text())
    assert report["data"]["images"] == 2
    dataset = open_dataset("camvid", tmp_path / "data", "val")
    part, whole = (
        fit_relation_weights(load_model(run)[0], dataset, max_images=count).before
        for count in (2, 3)
    )
    assert report["nll"]["before"] == pytest.approx(part, rel=1e-5) != pytest.approx(whole)


def test_a_model_without_relations_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", tmp_path / "data", potentials=("unary",))
    assert main(["--checkpoint", str(run), "--device", "cpu"]) == 2
    assert "no relation" in capsys.readouterr().err
    assert not any((run / "calibrate-camvid-val").iterdir())
