"""The options of how networks see images: the same in every command, and what they refuse."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from deepcrf_ext import calibrate, evaluate, explain, predict, tune_dense_crf
from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.view_options import add_view_options, views_of
from deepcrf_ext.data import open_dataset, read_image, read_labels
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.prediction import predict_image
from deepcrf_ext.evaluation.views import Views
from deepcrf_ext.records.checkpoint import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = (
    "--max-size",
    "--scales",
    "--flip",
    "--window",
    "--window-overlap",
    "--batch-statistics",
)
SEEN = ["--scales", "0.5,1", "--flip", "--window", "[16, 20]", "--batch-statistics", "0.5"]
VIEWS = Views((0.5, 1.0), True, window=(16, 20), batch_statistics=0.5)


@pytest.mark.parametrize(
    "command",
    ["evaluate", "predict", "calibrate", "tune_dense_crf", "explain", "voc_submission"],
)
def test_every_command_has_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["compatibility"] if command == "explain" else []
    with pytest.raises(SystemExit):
        importlib.import_module(f"deepcrf_ext.{command}").main([*more, "--help"])
    text = capsys.readouterr().out
    assert [option for option in OPTIONS if f"{option} " not in text] == []


def views(*arguments: str, photographs: bool = False) -> Views:
    parser = parsing.make_parser("program", "")
    add_view_options(parser, photographs)
    return views_of(parsing.parse(parser, arguments))


def test_how_they_are_given() -> None:
    assert views() == Views()
    assert views(photographs=True) == Views(max_size=640)
    assert views("--window", "320", photographs=True) == Views(window=(320, 320))
    both = views("--window", "320", "--max-size", "900", photographs=True)
    assert both == Views(max_size=900, window=(320, 320))
    assert views("--max-size", "null", photographs=True) == Views()
    for given in ("1", "[1]", "1.0"):
        assert views("--scales", given).scales == (1.0,)
    for given in ("0.75,1", "[0.75, 1]", "0.75, 1"):
        assert views("--scales", given).scales == (0.75, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scales", "0"), "scales: got [0.0], must be positive factors, such as [0.75,1.0,1.25]"),
        (("--scales", "many"), "scales: got many, must be positive factors, such as"),
        (("--scales", "[]"), "scales: got [], must be positive factors"),
        (("--window", "0"), "window: got 0, must be"),
        (("--window-overlap", "1"), "overlap: got 1.0, must be at least 0 and below 1"),
        (("--batch-statistics", "2"), "batch_statistics: got 2, must be"),
        (("--scale", "1"), "unrecognized arguments: --scale 1; did you mean --scales?"),
    ],
)
def test_what_they_refuse(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        views(*arguments)
    assert message in str(caught.value)


def test_evaluate_and_predict_see_the_same(run: Path, tmp_path: Path) -> None:
    common = ["--checkpoint", str(run), "--device", "cpu"]
    assert evaluate.main([*common, *SEEN, "--output", str(tmp_path / "scores")]) == 0
    report = json.loads((tmp_path / "scores/evaluation.json").read_text())
    assert report["views"] == json.loads(json.dumps(vars(VIEWS)))
    data = run.parent / "camvid"
    images = str(data / "val")
    assert predict.main([images, *common, *SEEN, "--output", str(tmp_path / "out")]) == 0
    model = load_model(run)[0]
    right = labelled = 0
    for sample in open_dataset("camvid", data, "val"):
        image = read_image(data / "val" / f"{sample.name}.png")
        expected = predict_image(model, image, "1unary+2pair", amp=False, views=VIEWS).labels
        found = read_labels(tmp_path / "out/labels" / f"{sample.name}.png")
        assert (found == expected).all()
        known = sample.labels != 255
        right, labelled = right + (found == sample.labels)[known].sum(), labelled + known.sum()
    assert report["rows"]["1unary+2pair"]["pixel_accuracy"] == pytest.approx(right / labelled)


def test_other_commands_take_them(run: Path, tmp_path: Path) -> None:
    common = ["--checkpoint", str(run), "--device", "cpu"]
    output = ["--output", str(tmp_path / "out")]
    tune = ["--trials", "1", "--images", "1"]
    expected = json.loads(json.dumps(vars(VIEWS)))
    assert tune_dense_crf.main([*common, *SEEN, *output, *tune]) == 0
    assert json.loads((tmp_path / "out/trials.json").read_text())["views"] == expected
    assert calibrate.main([*common, *SEEN, *output, "--max-images", "2"]) == 0
    assert json.loads((tmp_path / "out/calibration.json").read_text())["views"] == expected
    assert explain.main(["compatibility", *common, *SEEN, *output]) == 0
    assert json.loads((tmp_path / "out/compatibility.json").read_text())["views"] == expected


def test_masks_of_another_model_are_not_seen_by_networks(tmp_path: Path, capsys) -> None:
    folders = [f"--{noun}-folder={tmp_path}" for noun in ("image", "mask", "truth")]
    assert tune_dense_crf.main([*folders, "--output", str(tmp_path / "out"), "--flip"]) == 2
    assert "goes with --checkpoint" in capsys.readouterr().err.replace("go with", "goes with")
