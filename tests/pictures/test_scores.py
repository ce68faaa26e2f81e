"""Plots of scores."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from matplotlib.text import Text

from deepcrf_ext.pictures import scores
from deepcrf_ext.pictures.scores import class_plot, confusion_plot

CLASSES = ["sky", "road", "tree"]


def test_plots_take_absent_classes(tmp_path):
    confusion = np.array([[5, 1, 0], [0, 3, 0], [0, 0, 0]])
    iou = np.array([0.8, 0.75, np.nan])
    confusion_plot({"before": confusion, "after": confusion}, CLASSES, tmp_path / "c.png")
    class_plot({"before": iou, "after": iou}, CLASSES, "IoU, %", tmp_path / "i.png")
    for name in ("c.png", "i.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 5, "something is drawn"


def texts_drawn(monkeypatch, draw):
    """How many texts the figure holds that `draw` saves, and its height in inches."""
    figures = []
    monkeypatch.setattr(scores, "save_figure", lambda figure, path: figures.append(figure))
    draw()
    (figure,) = figures
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return len(shown), figure.get_figheight()


@pytest.mark.parametrize(("classes", "numbers"), [(60, True), (61, False)])
def test_numbers_of_many_classes_are_left_out(monkeypatch, classes, numbers):
    """Thousands of texts take longer than what they are of."""
    names = [f"class {index}" for index in range(classes)]
    iou = {row: np.linspace(0, 1, classes) for row in ("before", "after")}
    count, height = texts_drawn(monkeypatch, lambda: class_plot(iou, names, "IoU, %", "i.png"))
    assert (count > 3 * classes) == numbers
    assert height < (30 if numbers else 12)
    confusion = {row: 100 * np.eye(classes, dtype=int) for row in iou}
    count, _ = texts_drawn(monkeypatch, lambda: confusion_plot(confusion, names, "c.png"))
    assert (count > 5 * classes) == numbers
    assert count > 3 * classes  # the names below both, and beside the first


def test_plots_name_wrong_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"confusion: got shape \(2, 2\)"):
        confusion_plot({"x": np.eye(2, dtype=int)}, CLASSES, tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"scores\['x'\]: got 2 values"):
        class_plot({"x": np.zeros(2)}, CLASSES, "IoU, %", tmp_path / "i.png")
    with pytest.raises(ValueError, match="scores: got none"):
        class_plot({}, CLASSES, "IoU, %", tmp_path / "i.png")
    with pytest.raises(ValueError, match="confusions: got none"):
        confusion_plot({}, CLASSES, tmp_path / "c.png")
