"""What a reproduction is made of: examples, reduced data, steps that are done once, plots."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deepcrf_ext.data import open_dataset
from deepcrf_ext.data.reduced import Reduced
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.boundaries import BoundaryF1
from deepcrf_ext.evaluation.evaluation import Evaluation, ImageScores
from deepcrf_ext.evaluation.probabilities import ProbabilityScores
from deepcrf_ext.evaluation.regions import SegmentationMetrics
from deepcrf_ext.models import VARIANTS
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.paper import examples, plots
from deepcrf_ext.records.steps import Steps

pytestmark = pytest.mark.usefixtures("one_thread")


def test_choice_of_examples():
    before = [0.5, 0.5, 0.5, 0.5, None, 0.5, 0.5]
    after = [0.6, 0.4, 0.9, 0.2, 0.9, 0.5, 0.7]
    assert examples.choose(before, after, 2) == {
        "gains": [2, 6],
        "typical": [0, 5],
        "losses": [3, 1],
    }
    assert examples.choose([0.5], [0.6], 3) == {"gains": [0], "typical": [], "losses": []}
    assert examples.choose([0.5], [0.5], 3) == {"gains": [], "typical": [0], "losses": []}


def test_measuring_gives_the_scores_of_each_image(monkeypatch):
    """One without truth has none."""
    name, truth = "unary-3scales", torch.tensor([[0, 1]])
    regions, outlines = SegmentationMetrics(2), BoundaryF1(2)
    regions.update(truth, truth)
    found = Evaluation(
        scores={name: regions.compute()},
        boundaries={name: outlines.compute()},
        probabilities={name: ProbabilityScores(0.5, 0.1)},
        images=2,
        network_seconds=1.0,
        variant_seconds={name: 2.0},
        per_image=(
            ImageScores("a", name, 2, 0.75, 0.5, 0.1),
            ImageScores("b", name, 0, np.nan, np.nan, np.nan),
        ),
    )
    monkeypatch.setattr(examples, "evaluate", lambda *_: found)
    dataset = SimpleNamespace(classes=("a", "b"))
    result = examples.measure(None, dataset, name, VARIANTS[name], None, DenseCRFSettings())
    assert result["image_iou"] == [0.75, None]
    assert result["scores"]["mean_iou"] == 1
    assert result["scores"]["mean_boundary_f1"] is None
    assert result["seconds_per_image"] == {"networks": 1.0, "inference": 2.0}


def test_difference_picture():
    truth = np.array([[0, 0, 0, 0, 255]], np.uint8)
    before = np.array([[0, 1, 0, 1, 1]], np.uint8)
    after = np.array([[0, 0, 1, 2, 0]], np.uint8)
    first, corrected, spoilt, wrong, ignored = examples.difference(truth, before, after)[0].tolist()
    assert (corrected, spoilt) == (list(examples.CORRECTED), list(examples.SPOILT))
    assert first == ignored != wrong


def test_reduced_data():
    full = open_dataset("scenes", None, "val")
    part = Reduced(full, 5, 48)
    names = [sample.name for sample in part]
    assert names == [full[i].name for i in (6, 19, 32, 44, 57)]
    assert part[0].image.shape == (36, 48, 3)
    assert set(np.unique(part[0].labels)) <= set(np.unique(full[6].labels))
    np.testing.assert_array_equal(Reduced(full)[3].image, full[3].image)
    assert len(Reduced(full, 1000)) == len(full)
    with pytest.raises(ValueError, match="images: got 0"):
        Reduced(full, 0)


def test_a_step_runs_once_and_a_damaged_record_is_named(tmp_path):
    steps = Steps(tmp_path, "the command")
    values = iter([{"a": 1}])
    assert steps.run("one", lambda: next(values))["result"] == {"a": 1}
    assert steps.run("one", lambda: next(values))["command"] == "the command"
    (tmp_path / "one.json").write_text("{")
    with pytest.raises(InputError, match="delete it"):
        steps.run("one", dict)
    with pytest.raises(KeyError):
        steps.run("two", lambda: {}["missing"])
    assert [file.name for file in tmp_path.iterdir()] == ["one.json"]


def test_inline_svg_takes_the_colour_of_the_page(tmp_path):
    log = [
        {"kind": "train", "step": 1, "loss": {"unary": 2.0}},
        {"kind": "train", "step": 2, "loss": {"unary": 1.0, "surrounding": 3.0}},
        {"kind": "val", "step": 2, "mean_iou": {"unary": 0.5}},
    ]
    path = tmp_path / "curves.svg"
    plots.write_svg(path, lambda target: plots.curves_plot(log, target))
    first = path.read_text()
    plots.write_svg(path, lambda target: plots.curves_plot(log, target))
    assert path.read_text() == first
    svg = plots.inline_svg(first, 'a "title" & more')
    assert "currentColor" in svg
    assert svg.startswith("<svg")
    assert "surrounding" in svg
    assert 'aria-label="a &quot;title&quot; &amp; more"' in svg
    assert "://" not in svg
