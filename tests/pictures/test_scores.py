"""Plots of scores."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

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


def test_plots_name_wrong_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"confusion: got shape \(2, 2\)"):
        confusion_plot({"x": np.eye(2, dtype=int)}, CLASSES, tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"scores\['x'\]: got 2 values"):
        class_plot({"x": np.zeros(2)}, CLASSES, "IoU, %", tmp_path / "i.png")
    with pytest.raises(ValueError, match="scores: got none"):
        class_plot({}, CLASSES, "IoU, %", tmp_path / "i.png")
    with pytest.raises(ValueError, match="confusions: got none"):
        confusion_plot({}, CLASSES, tmp_path / "c.png")
