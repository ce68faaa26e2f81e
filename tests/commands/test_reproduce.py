"""The reproduce command: a run end to end, going on after a kill, and the report it ends in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deepcrf_ext import reproduce as command
from deepcrf_ext.data import open_dataset
from deepcrf_ext.data.reduced import Reduced
from deepcrf_ext.models import VARIANTS
from deepcrf_ext.paper import examples
from deepcrf_ext.paper.budgets import Plan
from deepcrf_ext.paper.reproduction import Reproduction
from deepcrf_ext.records.steps import read_json
from deepcrf_ext.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = """
train_images: 5
eval_images: 4
max_side: 48
examples: 1
device: cpu
train:
  model: {widths: [4, 6], convs: [1, 1], pooled_blocks: 2, head_widths: [8], hidden: 8}
  data: {crop: [36, 48]}
  optim: {lr: 0.02}
  epochs: 2
  batch_size: 2
  validate_every: 1
  warm_start: 0.5
  amp: false
"""
STEPS = [
    "train",
    *(f"evaluate-val-{row}" for row in VARIANTS),
    f"pictures-val-{list(VARIANTS)[-1]}",
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    file.write_text(SETTINGS)
    return file


def options(settings: Path, output: Path, *more: str) -> list[str]:
    return ["--config", str(settings), "--data.dataset", "scenes", "--output", str(output), *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, settings: Path) -> Path:
    """The folder of a whole reproduction."""
    folder = tmp_path_factory.mktemp("reproduce") / "out"
    assert command.main(options(settings, folder)) == 0
    return folder


def modified(folder: Path) -> dict[str, int]:
    files = [*folder.glob("steps/*"), *folder.glob("train/*.pt"), *folder.glob("pictures/**/*")]
    return {str(file): file.stat().st_mtime_ns for file in files}


class _Page(HTMLParser):
    """The tables of a page as lists of text, its pictures, and every reference to elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.references.append(value)
            if (tag, name) == ("img", "src"):
                self.sources.append(value)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.tables[-1][-1][-1] += data.strip() + (" " if data.strip() else "")


def test_results_hold_every_row_with_its_command(finished, settings):
    results = json.loads((finished / "results.json").read_text())
    rows = results["splits"]["val"]["rows"]
    assert list(rows) == list(VARIANTS)
    for name, row in rows.items():
        result = row["result"]
        matrix = np.array(result["scores"]["confusion"])
        assert result["images"] == len(result["image_iou"]) == 4
        assert matrix.sum() == 4 * 36 * 48, "every pixel of the shrunk images is counted"
        assert result["scores"]["pixel_accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
        assert row["command"].startswith("python -m deepcrf_ext.reproduce --config")
        assert row["environment"]["torch"].startswith(torch.__version__)
        before = rows["unary-3scales"]["result"]["scores"]["iou"]
        for label, gain in row["gains"].items():
            after = result["scores"]["iou"][label]
            assert (gain is None) == (after is None or before[label] is None)
            assert gain is None or gain == pytest.approx(100 * (after - before[label])), name
    assert results["training"]["result"]["images"] == 5
    assert sorted(p.stem for p in (finished / "steps").iterdir()) == sorted(STEPS)
    assert results["plan"]["train"]["model"]["widths"] == [4, 6]


def test_report_opens_without_a_network(finished):
    text = (finished / "report.html").read_text()
    page = _Page(text)
    assert "://" not in text
    assert all(ref.startswith(("data:image/", "#")) for ref in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    ids = re.findall(r'\sid="([^"]+)"', text)
    for reference in (r for r in page.references if r.startswith("#")):
        assert reference[1:] in ids


def test_report_shows_every_row_class_and_picture(finished):
    page = _Page((finished / "report.html").read_text())
    results = json.loads((finished / "results.json").read_text())
    measured = results["splits"]["val"]
    summary, classes, steps = page.tables
    assert [line[0].strip() for line in summary[1:]] == list(VARIANTS)
    for line, row in zip(summary[1:], measured["rows"].values(), strict=True):
        assert line[1].strip() == f"{100 * row['result']['scores']['mean_iou']:.1f}"
    assert [line[0].strip() for line in classes[1:]] == results["classes"]
    assert [cell.strip() for cell in classes[0][1:]] == list(VARIANTS)
    assert [line[0].strip() for line in steps[1:]] == STEPS
    shown = measured["examples"]["result"]["images"]
    assert len(page.sources) == 5 * len(shown) > 0
    assert all(source.startswith("data:image/") for source in page.sources)


def test_pictures_show_the_chosen_images(finished):
    results = json.loads((finished / "results.json").read_text())
    found = results["splits"]["val"]["examples"]["result"]
    dataset = Reduced(open_dataset("scenes", None, "val"), 4, 48)
    rows = results["splits"]["val"]["rows"]
    for entry in found["images"]:
        sample = dataset[entry["index"]]
        assert entry["iou"] == {
            name: rows[name]["result"]["image_iou"][entry["index"]]
            for name in ("unary-3scales", list(VARIANTS)[-1])
        }
        files = {title: finished / found["folder"] / f for title, f in entry["pictures"].items()}
        assert list(files) == ["image", "truth", "unary-3scales", list(VARIANTS)[-1], "difference"]
        truth = cv2.imread(str(files["truth"]))[..., ::-1]
        np.testing.assert_array_equal(truth, dataset.palette[sample.labels])
        before, after, drawn = (
            cv2.imread(str(files[title]))[..., ::-1] for title in list(files)[2:]
        )
        right, was_right = ((shown == truth).all(-1) for shown in (after, before))
        corrected, spoilt = (
            (drawn == colour).all(-1) for colour in (examples.CORRECTED, examples.SPOILT)
        )
        np.testing.assert_array_equal(corrected, right & ~was_right)
        np.testing.assert_array_equal(spoilt, was_right & ~right)
        photo = cv2.imread(str(files["image"]))[..., ::-1].astype(int)
        assert np.abs(photo - sample.image).mean() < 12, "a JPEG of the image"


@pytest.mark.slow
def test_finished_work_is_not_done_again(finished, settings, monkeypatch):
    before = modified(finished)
    assert len(before) > len(STEPS)
    for owner, name in ((Trainer, "fit"), (examples, "measure"), (examples, "draw")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("done again"))
    report = finished / "report.html"
    old = report.read_text()
    assert command.main(options(settings, finished)) == 0
    assert modified(finished) == before
    assert report.read_text() == old


@pytest.mark.slow
def test_a_lost_row_alone_is_measured_again(finished, settings, monkeypatch):
    record = finished / "steps" / "evaluate-val-pairwise-1.json"
    expected = read_json(record)["result"]["scores"]
    record.unlink()
    measured = []
    measure = examples.measure

    def spy(model, dataset, name, *settings):
        measured.append(name)
        return measure(model, dataset, name, *settings)

    monkeypatch.setattr(examples, "measure", spy)
    assert command.main(options(settings, finished)) == 0
    assert measured == ["pairwise-1"]
    assert read_json(record)["result"]["scores"] == expected


def test_other_settings_need_another_folder(finished, settings, capsys):
    assert command.main(options(settings, finished, "--train.seed", "5")) == 2
    message = capsys.readouterr().err
    assert "train.seed: 0, then 5" in message
    assert message.count("\n") == 1


def test_files_of_others_are_left_alone(tmp_path, settings, capsys):
    """Such as images in a folder that is called as that of the training."""
    (tmp_path / "train").mkdir()
    image = tmp_path / "train" / "0.png"
    image.write_bytes(b"not to be lost")
    assert command.main(options(settings, tmp_path)) == 2
    assert f"output: {tmp_path} holds files, and no reproduction" in capsys.readouterr().err
    assert [*tmp_path.rglob("*.*")] == [image]


def test_a_plan_of_which_nothing_is_done_may_change(tmp_path, settings, capsys):
    """Its data could not be used, say."""
    folder = tmp_path / "out"
    wrong = ["--config", str(settings), "--data.dataset", "camvid", "--output", str(folder)]
    assert command.main([*wrong, "--data.root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: does not exist" in capsys.readouterr().err
    plan, _ = command.parse(options(settings, folder))
    Reproduction(plan, folder, "")
    assert Plan.from_dict(read_json(folder / "plan.json")).differences(plan) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on(tmp_path, settings, finished, number):
    """Killed in training, the same command ends with the figures of a run that was not killed."""
    output = tmp_path / "out"
    arguments = [sys.executable, "-m", "deepcrf_ext.reproduce", *options(settings, output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    log = output / "train" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (log.exists() and log.read_text().strip()):  # the first step is done
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    error = process.communicate()[1]
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert "the same command goes on" in error
    assert not (output / "steps" / "train.json").exists()
    assert command.main(options(settings, output)) == 0
    for step in STEPS[:-1]:
        one, other = (read_json(f / "steps" / f"{step}.json")["result"] for f in (output, finished))
        assert one.get("scores", one) == other.get("scores", other), step


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, settings, finished):
    output = tmp_path / "out"
    plan, _ = command.parse(options(settings, output))
    Reproduction(plan, output, "")
    (output / "train").mkdir()
    (output / "train" / "config.yaml").write_text("half a fi")
    assert command.main(options(settings, output)) == 0
    step = "steps/evaluate-val-unary-3scales.json"
    scores = [read_json(folder / step)["result"]["scores"] for folder in (output, finished)]
    assert scores[0] == scores[1]
