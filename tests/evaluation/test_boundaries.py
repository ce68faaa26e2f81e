"""Boundary F1 against a computation straight from its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepcrf_ext.evaluation.boundaries import TOLERANCE, BoundaryF1

Labels = NDArray[np.integer]


def plain_outline(labels: Labels, label: int) -> list[tuple[int, int]]:
    height, width = labels.shape
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if labels[y, x] == label
        and any(
            0 <= y + dy < height and 0 <= x + dx < width and labels[y + dy, x + dx] != label
            for dy, dx in steps
        )
    ]


def plain_f1(prediction: Labels, truth: Labels, label: int, tolerance: float) -> float | None:
    """F1 of one class in one image; None where the truth has no outline of it."""
    prediction = np.where(truth == 255, 255, prediction)
    limit = tolerance * math.hypot(*truth.shape)
    ours, theirs = plain_outline(prediction, label), plain_outline(truth, label)
    if not theirs:
        return None

    def share(points: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        near = [any(math.dist(p, q) <= limit for q in others) for p in points]
        return sum(near) / len(near) if near else 0.0

    precision, recall = share(ours, theirs), share(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(st.integers(0, 2**32 - 1), st.sampled_from([TOLERANCE, 0.05, 0.12]), st.booleans())
def test_equals_the_definition(seed: int, tolerance: float, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    metric = BoundaryF1(4, tolerance)
    found: list[list[float]] = [[], [], [], []]
    for _ in range(3):
        height, width = rng.integers(1, 17, 2)
        cell = 4 if coarse else 1
        maps = []
        for labels in ([0, 1, 2], [0, 1, 3, 255]):
            small = rng.choice(labels, (-(-height // cell), -(-width // cell)))
            maps.append(small.repeat(cell, 0).repeat(cell, 1)[:height, :width])
        metric.update(*maps)
        for label in range(4):
            if (value := plain_f1(maps[0], maps[1], label, tolerance)) is not None:
                found[label].append(value)
    wanted = [np.mean(values) if values else np.nan for values in found]
    scores = metric.compute()
    np.testing.assert_allclose(scores.f1, wanted, atol=1e-12)
    defined = [value for value in wanted if not np.isnan(value)]
    assert scores.mean_f1 == pytest.approx(np.mean(defined) if defined else np.nan, nan_ok=True)


def halves(column: int) -> Labels:
    labels = np.zeros((300, 400), np.uint8)  # diagonal 500, tolerance 3.75 pixels
    labels[:, column:] = 1
    return labels


@pytest.mark.parametrize(("column", "score"), [(200, 1.0), (203, 1.0), (197, 1.0), (204, 0.0)])
def test_tolerance_is_a_fraction_of_the_diagonal(column: int, score: float) -> None:
    metric = BoundaryF1(3)
    metric.update(halves(column), halves(200))
    scores = metric.compute()
    np.testing.assert_array_equal(scores.f1, [score, score, np.nan])
    assert scores.mean_f1 == score


@pytest.mark.parametrize(("column", "score"), [(204, 1.0), (205, 0.0)])
def test_the_tolerance_itself_is_near_enough(column: int, score: float) -> None:
    metric = BoundaryF1(2, tolerance=4 / 500)
    metric.update(halves(column), halves(200))
    assert metric.compute().mean_f1 == score


@pytest.mark.parametrize(("column", "score"), [(200, 1.0), (201, 0.0)])
def test_without_tolerance_outlines_are_the_same_or_not(column: int, score: float) -> None:
    metric = BoundaryF1(2, tolerance=0)
    metric.update(halves(column), halves(200))
    assert metric.compute().mean_f1 == score


def test_a_single_class_has_no_outline() -> None:
    metric = BoundaryF1(1)
    metric.update(np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8))
    assert math.isnan(metric.compute().mean_f1)


def test_what_is_ignored_does_not_count() -> None:
    truth = halves(200)
    truth[:, 190:210] = 255
    for column in (190, 200, 210):
        metric = BoundaryF1(2)
        metric.update(halves(column), truth)
        assert metric.compute().mean_f1 == 1
    metric = BoundaryF1(2)
    metric.update(halves(220), truth)
    assert metric.compute().mean_f1 < 0.7
    metric = BoundaryF1(2)
    metric.update(halves(200), np.full_like(truth, 255))
    assert math.isnan(metric.compute().mean_f1)


def test_plain_values_for_json() -> None:
    metric = BoundaryF1(3)
    metric.update(halves(200), halves(200))
    assert metric.compute().as_dict(["a", "b", "c"]) == {
        "mean_boundary_f1": 1.0,
        "boundary_f1": {"a": 1.0, "b": 1.0, "c": None},
    }


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_classes: got 0"):
        BoundaryF1(0)
    with pytest.raises(ValueError, match="tolerance: got -1"):
        BoundaryF1(2, -1)
    with pytest.raises(ValueError, match=r"prediction: got shape \(3, 4\) and a truth of \(4, 3\)"):
        BoundaryF1(2).update(np.zeros((3, 4)), np.zeros((4, 3)))
