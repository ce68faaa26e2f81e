"""Names of classes in pictures: drawn as they are, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from deepcrf_ext.paper.plots import gains_plot
from deepcrf_ext.pictures.figures import DPI, save_figure
from deepcrf_ext.pictures.labels import legend, picture_grid
from deepcrf_ext.pictures.scores import class_plot, confusion_plot

NAMES = ("$\\frac{$", "a$b$", "背景", "_background_")
PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn(tmp_path: Path):
    scores = {"x": np.linspace(0.1, 0.9, 4)}
    picture_grid([[np.zeros((9, 9, 3), np.uint8)]], ["t"], tmp_path / "g.png", NAMES, PALETTE)
    class_plot(scores, NAMES, "IoU, %", tmp_path / "i.png")
    confusion_plot({"x": np.eye(4, dtype=np.int64)}, NAMES, tmp_path / "c.png")
    gains_plot(scores, NAMES, tmp_path / "g.svg")
    assert legend(NAMES, PALETTE).std() > 5
    assert all((tmp_path / name).stat().st_size for name in ("g.png", "i.png", "c.png", "g.svg"))


def test_a_dollar_begins_no_formula(tmp_path: Path):
    drawn = []
    for name, text in (("plain", "$x^2$"), ("escaped", r"\$x^2\$")):
        figure = Figure(figsize=(2, 1))
        label = figure.text(0.1, 0.4, text)
        if name == "plain":
            save_figure(figure, tmp_path / "plain.png")
        else:
            assert label.get_parse_math()
            figure.savefig(tmp_path / "escaped.png", dpi=DPI)
        drawn.append(cv2.imread(str(tmp_path / f"{name}.png")))
    np.testing.assert_array_equal(*drawn)
