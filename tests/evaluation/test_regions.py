"""The scores against a plain numpy count of pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcrf_ext.evaluation.regions import Scores, SegmentationMetrics


def count_pixels(predictions, truths, num_classes):
    """IoU and recall per class by counting pixels class by class."""
    prediction = np.concatenate([p.ravel() for p in predictions])
    truth = np.concatenate([t.ravel() for t in truths])
    prediction, truth = prediction[truth != 255], truth[truth != 255]
    iou, recall = [], []
    for k in range(num_classes):
        both = np.sum((prediction == k) & (truth == k))
        either = np.sum((prediction == k) | (truth == k))
        iou.append(both / either if either else np.nan)
        recall.append(both / np.sum(truth == k) if np.any(truth == k) else np.nan)
    return np.array(iou), np.array(recall), np.mean(prediction == truth)


@settings(max_examples=40, deadline=None)
@given(
    num_classes=st.integers(1, 7),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_scores_equal_counted_pixels(num_classes, shapes, seed):
    rng = np.random.default_rng(seed)
    metrics = SegmentationMetrics(num_classes)
    predictions, truths = [], []
    for shape in shapes:
        prediction = rng.integers(0, num_classes, shape)
        truth = rng.integers(0, num_classes, shape).astype(np.uint8)
        truth[rng.random(shape) < 0.2] = 255
        truth.flat[0] = 0  # something is valid
        predictions.append(prediction)
        truths.append(truth)
        metrics.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    scores = metrics.compute()
    iou, recall, pixel_accuracy = count_pixels(predictions, truths, num_classes)
    np.testing.assert_allclose(scores.iou, iou)
    np.testing.assert_allclose(scores.accuracy, recall)
    assert scores.mean_iou == pytest.approx(np.nanmean(iou))
    assert scores.class_accuracy == pytest.approx(np.nanmean(recall))
    assert scores.pixel_accuracy == pytest.approx(pixel_accuracy)
    assert scores.confusion.sum() == sum(np.sum(t != 255) for t in truths)


def test_a_class_only_predicted_counts_as_zero_and_an_absent_one_does_not_count():
    metrics = SegmentationMetrics(3)
    metrics.update(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]))
    scores = metrics.compute()
    np.testing.assert_array_equal(scores.iou, [2 / 3, 0, np.nan])
    assert scores.mean_iou == pytest.approx(1 / 3)
    assert scores.class_accuracy == pytest.approx(2 / 3)
    np.testing.assert_array_equal(scores.confusion, [[2, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_nothing_valid_is_undefined_and_json_has_no_nan():
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[1]]), torch.tensor([[255]]))
    scores = metrics.compute()
    assert np.isnan([scores.mean_iou, scores.pixel_accuracy, scores.class_accuracy]).all()
    written = json.loads(json.dumps(scores.as_dict(["a", "b"]), allow_nan=False))
    assert written["mean_iou"] is None
    assert written["iou"] == {"a": None, "b": None}


def test_compute_is_a_snapshot():
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([0]), torch.tensor([0]))
    first = metrics.compute()
    metrics.update(torch.tensor([1]), torch.tensor([0]))
    assert first.confusion.sum() == 1
    assert metrics.compute().pixel_accuracy == 0.5


def test_wrong_arguments_are_named():
    metrics = SegmentationMetrics(3)
    with pytest.raises(ValueError, match=r"prediction: got shape \(2,\).*\(3,\)"):
        metrics.update(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"truth: got labels 0\.\.3"):
        metrics.update(torch.tensor([0, 0]), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"prediction: got labels -1\.\.0"):
        metrics.update(torch.tensor([0, -1]), torch.tensor([0, 255]))
    assert metrics.compute().confusion.sum() == 0
    with pytest.raises(ValueError, match="num_classes: got 0"):
        SegmentationMetrics(0)
    with pytest.raises(ValueError, match="square"):
        Scores.from_confusion(np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="classes: got 1 names, must be 3"):
        metrics.compute().as_dict(["one"])
