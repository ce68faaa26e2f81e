"""The search for weights of relations, over measures whose least is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from deepcrf_ext.nn.calibration import fit_weights

Measured = list[dict[str, float]]


def counted(value: Callable[[float, float], float]) -> tuple[Callable, Measured]:
    """A measure of the weights "near" and "far", and the list of what it was asked for."""
    asked: Measured = []

    def measure(weights: Sequence[dict[str, float]]) -> list[float]:
        asked.extend(weights)
        return [value(each["near"], each["far"]) for each in weights]

    return measure, asked


def log_distance(weight: float, wanted: float) -> float:
    return abs(math.log(weight / wanted)) if weight else 20.0


@pytest.mark.parametrize("near", [7.0, 1.0, 0.037, 2e-5])
@pytest.mark.parametrize("far", [0.3, 0.0])
def test_finds_what_measures_least(near: float, far: float) -> None:
    def value(first: float, second: float) -> float:
        return log_distance(first, near) + (log_distance(second, far) if far else second)

    measure, asked = counted(value)
    weights, calibration = fit_weights({"near": 1.0, "far": 1.0}, measure)
    assert weights["near"] == pytest.approx(near, rel=0.05)
    assert weights["far"] == pytest.approx(far, rel=0.05)
    assert calibration == (value(1.0, 1.0), value(*weights.values()))
    assert len(asked) == len({tuple(each.values()) for each in asked}), "nothing twice"


def test_tries_each_relation_alone() -> None:
    """One of them helps, at a weight and without the other, which no single step leads to."""

    def value(first: float, second: float) -> float:
        return 0.5 if second > 0.05 and not first else 1.0

    weights, calibration = fit_weights({"near": 0.01, "far": 0.01}, counted(value)[0])
    assert weights["near"] == 0
    assert weights["far"] > 0.05
    assert calibration == (1.0, 0.5)


def test_takes_up_again_what_alone_it_left_out() -> None:
    measure, _ = counted(lambda first, second: abs(first - 0.3) + abs(second - 0.02))
    weights, _ = fit_weights({"near": 1.0, "far": 1.0}, measure)
    assert weights == pytest.approx({"near": 0.3, "far": 0.02}, rel=0.05)


def test_leaves_out_what_it_took_in_where_that_comes_to_help() -> None:
    def value(first: float, second: float) -> float:
        distance = log_distance(first, 0.2)
        return distance + (0.5 if second else 1.0 if distance > 0.1 else 0.0)

    weights, _ = fit_weights({"near": 1.0, "far": 1.0}, counted(value)[0])
    assert weights == {"near": pytest.approx(0.2, rel=0.05), "far": 0}


def test_is_never_worse_than_the_start() -> None:
    def value(first: float, second: float) -> float:
        return 0.0 if (first, second) == (0.0123, 4.5) else math.nan if first else 1.0

    start = {"near": 0.0123, "far": 4.5}
    assert fit_weights(start, counted(value)[0]) == (start, (0.0, 0.0))


def test_nothing_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="got no finite .* at any weight"):
        fit_weights({"near": 1.0, "far": 1.0}, counted(lambda *_: math.nan)[0])
