"""The evaluate command: scores against a plain second computation, files, and bad input."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_run import NUM_CLASSES, write_camvid, write_run

from deepcrf_ext import evaluate as command
from deepcrf_ext import train
from deepcrf_ext.data import open_dataset, to_tensors
from deepcrf_ext.evaluate import format_table, main
from deepcrf_ext.evaluation.boundaries import BoundaryF1, BoundaryScores
from deepcrf_ext.evaluation.evaluation import (
    Evaluation,
    before_and_after,
    choose_variants,
    evaluate,
)
from deepcrf_ext.evaluation.probabilities import ProbabilityScores
from deepcrf_ext.evaluation.regions import Scores, SegmentationMetrics
from deepcrf_ext.evaluation.views import Views
from deepcrf_ext.models import VARIANTS, Variant
from deepcrf_ext.records.checkpoint import load_checkpoint, load_model, save_checkpoint


def test_every_row_equals_its_own_prediction_and_networks_run_once_an_image(run):
    model, config, _ = load_model(run)
    dataset = open_dataset("camvid", config.data.root, "val")
    expected = {name: SegmentationMetrics(NUM_CLASSES) for name in VARIANTS}
    boundaries = {name: BoundaryF1(NUM_CLASSES) for name in VARIANTS}
    with torch.no_grad():
        for index in range(len(dataset)):
            image, truth = to_tensors(dataset[index])
            for name, metric in expected.items():
                labels = model.predict(image[None], name)[0].argmax(0)
                metric.update(labels, truth)
                boundaries[name].update(labels.numpy(), truth.numpy())
    calls = []
    for name, network in model.potentials.items():
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    result = evaluate(model, dataset, choose_variants(model, ["all"]), amp=False)
    assert list(result.scores) == list(VARIANTS)
    for name, metric in expected.items():
        np.testing.assert_array_equal(
            result.scores[name].confusion, metric.compute().confusion, err_msg=name
        )
        assert result.boundaries[name].mean_f1 == boundaries[name].compute().mean_f1 > 0
    assert result.images == len(dataset) == 3
    assert sorted(calls) == sorted(model.potential_names * 3)
    labels_used = {name: np.count_nonzero(s.confusion.sum(0)) for name, s in result.scores.items()}
    assert max(labels_used.values()) > 2, "the untrained model must not be constant for this test"


def test_rows_before_and_after(tmp_path, run):
    model, _, _ = load_model(run)
    names = ["unary-3scales", "1unary+2pair"]
    assert before_and_after(model) == {name: VARIANTS[name] for name in names}
    part, _, _ = load_model(
        write_run(tmp_path / "part", tmp_path / "data", potentials=("unary_1scale", "above_below"))
    )
    assert before_and_after(part) == {
        "unary-1scale": Variant("unary_1scale"),
        "unary_1scale+above_below": Variant("unary_1scale", ("above_below",)),
    }
    assert list(choose_variants(part, ["all"])) == ["unary-1scale", "pairwise-2"]


def test_command_writes_table_json_and_plots(run, tmp_path, capsys):
    output = tmp_path / "results"
    code = main(["--checkpoint", str(run), "--rows", "all", "--output", str(output)])
    printed = capsys.readouterr().out
    assert code == 0
    assert printed.splitlines()[2].startswith("sky ")
    report = json.loads((output / "evaluation.json").read_text())
    assert list(report["rows"]) == list(VARIANTS)
    assert report["data"] == {
        "dataset": "camvid",
        "root": report["config"]["data"]["root"],
        "split": "val",
        "images": 3,
    }
    assert report["checkpoint"]["step"] == 7
    assert report["command"].startswith("python -m deepcrf_ext.evaluate --checkpoint")
    assert report["versions"]["torch"] == torch.__version__
    assert report["seconds_per_image"]["networks"] > 0
    for name, row in report["rows"].items():
        matrix = np.array(row["confusion"])
        assert matrix.shape == (NUM_CLASSES, NUM_CLASSES)
        assert row["pixel_accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
        assert f"{100 * row['mean_iou']:.1f}" in printed, name
        assert f"{100 * row['mean_boundary_f1']:.1f}" in printed, name
        assert list(row["boundary_f1"]) == list(row["iou"])
    assert report["dense_crf"]["bilateral_sxy"] == 80
    for plot in ("iou.png", "boundary_f1.png", "confusion.png"):
        assert cv2.imread(str(output / plot)) is not None


def test_defaults_are_the_trained_data_and_a_folder_beside_the_checkpoint(run):
    assert main(["--checkpoint", str(run / "last.pt")]) == 0
    report = json.loads((run / "evaluate-camvid-val" / "evaluation.json").read_text())
    assert list(report["rows"]) == ["unary-3scales", "1unary+2pair"]
    assert report["dense_crf"] is None


def test_dense_crf_settings_change_the_full_row_alone(run, tmp_path):
    reports = []
    for name, options in {
        "none": ["--dense-crf-iterations", "0"],
        "file": ["--dense-crf-params", str(tmp_path / "params.yaml")],
    }.items():
        (tmp_path / "params.yaml").write_text("bilateral_weight: 30\niterations: 3\n")
        arguments = ["--checkpoint", str(run), "--rows", "1unary+2pair", "full", *options]
        assert main([*arguments, "--output", str(tmp_path / name)]) == 0
        reports.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    none, file = (
        {name: row["confusion"] for name, row in report["rows"].items()} for report in reports
    )
    assert none["full"] == none["1unary+2pair"] == file["1unary+2pair"] != file["full"]
    assert reports[1]["dense_crf"] == {
        "gaussian_sxy": 3,
        "gaussian_weight": 3,
        "bilateral_sxy": 80,
        "bilateral_srgb": 13,
        "bilateral_weight": 30,
        "iterations": 3,
    }


def test_scores_of_each_image(run, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(run.parent / "camvid", root)
    void = cv2.imread(str(root / "valannot" / "1.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(root / "valannot" / "1.png"), np.full_like(void, NUM_CLASSES))
    arguments = ["--checkpoint", str(run), "--output", str(tmp_path), "--data.root", str(root)]
    assert main(arguments) == 0
    with (tmp_path / "per_image.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    rows = ["unary-3scales", "1unary+2pair"]
    assert [(line["image"], line["row"]) for line in table] == [
        (str(image), row) for image in range(3) for row in rows
    ]
    assert list(table[2].values()) == ["1", rows[0], "0", "", "", ""]
    model, config, _ = load_model(run)
    dataset = open_dataset("camvid", root, "val")
    for line in (line for line in table if line["pixels"] != "0"):
        one = torch.utils.data.Subset(dataset, [int(line["image"])])
        variants = {"row": VARIANTS[line["row"]]}
        expected = evaluate(model, one, variants, config.amp, boundaries=False)
        scores = expected.scores["row"]
        assert int(line["pixels"]) == scores.confusion.sum() > 0
        assert float(line["mean_iou"]) == scores.mean_iou
        assert float(line["pixel_accuracy"]) == scores.pixel_accuracy
        assert float(line["nll"]) == expected.probabilities["row"].nll
    report = json.loads((tmp_path / "evaluation.json").read_text())
    pixels = np.array([int(line["pixels"]) for line in table[::2]])
    right = [float(line["pixel_accuracy"] or 0) for line in table[::2]]
    whole = report["rows"][rows[0]]
    assert whole["pixel_accuracy"] == pytest.approx((pixels * right).sum() / pixels.sum())


def test_flip_and_multi_scale_testing(run, tmp_path):
    model, config, _ = load_model(run)
    dataset = open_dataset("camvid", config.data.root, "val")
    views = Views((0.75, 1.0), True)
    expected = evaluate(model, dataset, before_and_after(model), config.amp, views=views)
    arguments = ["--checkpoint", str(run), "--output", str(tmp_path)]
    assert main([*arguments, "--scales", "[0.75,1.0]", "--flip"]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["views"] == {
        **vars(Views()),
        "scales": [0.75, 1.0],
        "flip": True,
    }
    for name, scores in expected.scores.items():
        assert report["rows"][name]["confusion"] == scores.confusion.tolist()


def test_networks_compute_as_in_training(run, tmp_path):
    state = load_checkpoint(run / "last.pt")
    state["config"]["amp"] = True
    save_checkpoint(tmp_path / "mixed.pt", state)
    assert main(["--checkpoint", str(tmp_path / "mixed.pt"), "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    model, config, _ = load_model(run)
    dataset = open_dataset("camvid", config.data.root, "val")
    mixed, plain = (
        evaluate(model, dataset, before_and_after(model), amp, boundaries=False).probabilities
        for amp in (True, False)
    )
    for name, scores in mixed.items():
        assert report["rows"][name]["nll"] == scores.nll != plain[name].nll


def test_data_can_be_overridden(run, tmp_path):
    other = write_camvid(tmp_path / "other", "test", count=1)
    arguments = ["--checkpoint", str(run), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--data.root", str(other), "--data.split", "test"]) == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["data"]["images"] == 1
    assert report["data"]["root"] == str(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "fully"], "row: got 'fully', must be one of"),
        (["--data.split", "nope"], "split: got 'nope'"),
        (["--data.dataset", "scenes"], "the checkpoint was trained for 11"),
        (["--data.dataset", "voc"], "data.root: not given"),
        (["--data.root", "missing-folder"], "missing-folder"),
        (["--checkpoint", "missing-run"], "missing-run"),
        (["--device", "tpu"], "'tpu'"),
        (["--scales", "[0.5,-1]"], "scales: got"),
        (["--scales", "[]"], "scales: got [], must be positive factors"),
        (["--dense-crf-params", "deeplab"], "--dense-crf-params goes with --rows full"),
        (["--rows", "full", "--dense-crf-params", "missing"], "missing is neither a file nor one"),
        (["--rows", "full", "--dense-crf-iterations", "-1"], "dense_crf_iterations"),
        (["--output", f"{__file__}/x"], "test_evaluate.py/x cannot be written (Not a directory)"),
        (["--nonsense", "1"], "nonsense"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_arguments_end_in_one_line(run, capsys, arguments, message):
    assert main(["--checkpoint", str(run), *arguments]) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ")
    assert message in errors
    assert "\n" not in errors


def test_kernels_too_narrow_for_the_images_are_the_users_error(run, tmp_path, capsys):
    arguments = ["--checkpoint", str(run), "--output", str(tmp_path), "--rows", "full"]
    assert main([*arguments, "--dense-crf-params", "{bilateral_srgb: 0.0000001}"]) == 2
    assert "widen the kernel" in capsys.readouterr().err.splitlines()[-1]


def test_row_without_its_networks_names_them(tmp_path, capsys):
    run = write_run(tmp_path / "run", tmp_path / "data", potentials=("unary", "surrounding"))
    assert main(["--checkpoint", str(run), "--rows", "1unary+2pair"]) == 2
    assert "needs the potentials above_below" in capsys.readouterr().err


def test_unary_of_one_scale_is_a_row_where_it_was_trained(tmp_path, capsys):
    run = write_run(tmp_path / "run", tmp_path / "data", potentials=None)
    arguments = ["--checkpoint", str(run), "--output", str(tmp_path / "results"), "--rows"]
    assert main([*arguments, "unary-1scale"]) == 2
    error = capsys.readouterr().err
    assert "needs the potentials unary_1scale, which this checkpoint lacks" in error
    assert "Train with --model.potentials all" in error
    assert error.count("\n") == 1
    assert list(choose_variants(load_model(run)[0], ["all"])) == list(VARIANTS)[1:]
    assert main([*arguments, "all"]) == 0
    assert "Without unary-1scale, whose network train --model.pot" in capsys.readouterr().out


def test_unreadable_files_are_named(tmp_path, capsys):
    run = write_run(tmp_path / "run", tmp_path / "data")
    (tmp_path / "data" / "val" / "1.png").write_bytes(b"")
    assert main(["--checkpoint", str(run)]) == 2
    assert str(tmp_path / "data" / "val" / "1.png") in capsys.readouterr().err
    checkpoint = run / "last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    assert main(["--checkpoint", str(run)]) == 2
    assert str(checkpoint) in capsys.readouterr().err


def test_table_shows_absent_classes_as_a_dash():
    scores = Scores.from_confusion(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    boundary = BoundaryScores(np.array([0.5, 0.25, np.nan]), 0.375)
    name = "a-long-row-name"
    probabilities = {name: ProbabilityScores(0.2345, 0.0625)}
    result = Evaluation({name: scores}, {name: boundary}, probabilities, 1, 0.0, {name: 0.0})
    table = format_table(result, ["sky", "building", "car"])
    lines = {line.split("  ")[0].strip(): line.split()[-1] for line in table.splitlines()}
    assert lines["sky"] == "75.0"
    assert lines["building"] == "80.0"
    assert lines["car"] == "-"
    assert lines["mean IoU"] == "77.5"
    assert lines["boundary F1"] == "37.5"
    assert lines["calibration error"] == "6.2"
    assert lines["NLL, nats"] == "0.234"
    assert len({len(line) for line in table.splitlines()}) == 1


def test_help_explains_the_rows(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "1unary+2pair" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told_before_measuring(
    run, tmp_path, capsys, monkeypatch
):
    def refuse(dir: Path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr("deepcrf_ext.whole_files.TemporaryFile", refuse)
    monkeypatch.setattr(command, "evaluate", lambda *_, **__: pytest.fail("measured first"))
    assert command.main(["--checkpoint", str(run), "--output", str(tmp_path)]) == 2
    told = f"error: output: {tmp_path} cannot be written (Read-only file system); choose another"
    assert told in capsys.readouterr().err


def test_data_that_are_not_where_the_training_found_them(run, tmp_path, monkeypatch, capsys):
    """As a relative folder is not, seen from another one: the line says which option mends it."""
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    content = load_checkpoint(moved / "last.pt")
    content["config"]["data"]["root"] = "data/camvid"
    save_checkpoint(moved / "last.pt", content)
    monkeypatch.chdir(tmp_path)
    for attempt in (
        lambda: main(["--checkpoint", str(moved)]),
        lambda: train.main(["--resume", str(moved)]),
    ):
        assert attempt() == 2
        assert capsys.readouterr().err.strip() == (
            "error: data.root: data/camvid, where the training found its data, does not exist in "
            f"{tmp_path}; --data.root says where they are now"
        )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "camvid").symlink_to(load_model(run)[1].data.root)
    assert main(["--checkpoint", str(moved)]) == 0
