"""What `compare_objectives` found, as figures, a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deepcrf_ext.pictures.figures import save_figure
from deepcrf_ext.records.run_folder import read_metrics


@dataclass(frozen=True)
class Point:
    """A measurement on the validation images after a step; seconds are those of the steps alone.

    nll: mean over pixels of -log of the truth's marginal; mean_iou: in 0..1; unary_mean_iou: of the
    unary by itself, None without one; train_loss: means over the epoch by name, empty at the start.
    """

    step: int
    seconds: float
    nll: float
    mean_iou: float
    unary_mean_iou: float | None
    train_loss: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """A mode's training; `error` says why it ended early, if it did."""

    epochs: int
    steps: int
    seconds: float
    error: str | None
    points: list[Point]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Curve:
        """The curve back from `dataclasses.asdict`."""
        return cls(**{**values, "points": [Point(**point) for point in values["points"]]})

    @property
    def best(self) -> Point:
        """The point of the largest mean IoU."""
        return max(self.points, key=lambda point: point.mean_iou)

    def first_reaching(self, mean_iou: float) -> Point | None:
        """The first point with this mean IoU, None if there is none."""
        return next((point for point in self.points if point.mean_iou >= mean_iou), None)


def read_curve(
    folder: Path, measured: Mapping[str, Any], times: Sequence[float], error: str | None
) -> Curve:
    """The curve of a mode that has trained.

    Args:
        folder: the mode's, with metrics.jsonl.
        measured: of the start; it is the first point.
        times: seconds of a step in each epoch.
        error: why the mode ended early, if it did.
    """
    clock = np.concatenate([[0.0], np.cumsum(np.repeat(times, measured["per_epoch"]))])
    every = read_metrics(folder)
    steps = max((line["step"] for line in every), default=0)
    start = measured["start"]
    scores = {key: {title: row[key] for title, row in start.items()} for key in ("nll", "mean_iou")}
    lines: list[dict[str, Any]] = [{"step": 0, "train_loss": {}, **scores}]
    lines += [line for line in every if line["kind"] == "val"]
    points = [_point(line, float(clock[line["step"]])) for line in lines]
    return Curve(len(times), steps, float(clock[steps]), error, points)


def _point(line: Mapping[str, Any], seconds: float) -> Point:
    unary, *_, final = list(line["mean_iou"]) * 2  # one alone is both
    return Point(
        line["step"],
        seconds,
        line["nll"][final],
        line["mean_iou"][final],
        line["mean_iou"][unary] if unary.startswith("unary") else None,
        line["train_loss"],
    )


def half_way(curves: Mapping[str, Curve]) -> float:
    """The mean IoU halfway from the start to the best of any mode."""
    start = next(iter(curves.values())).points[0].mean_iou
    return (start + max(curve.best.mean_iou for curve in curves.values())) / 2


def table(curves: Mapping[str, Curve]) -> str:
    """The modes as a Markdown table; its last columns say how soon `half_way` is reached."""
    level = half_way(curves)
    heads = [
        "mode",
        "steps",
        "ms a step",
        "seconds",
        "best val mIoU",
        "last val mIoU",
        "last, unary alone",
        "last val loss",
        f"steps to {100 * level:.1f}",
        "seconds to it",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, curve in curves.items():
        last, reached = curve.points[-1], curve.first_reaching(level)
        unary = "-" if last.unary_mean_iou is None else f"{100 * last.unary_mean_iou:.1f}"
        cells = [
            name if curve.error is None else f"{name} (ended: loss not finite)",
            str(curve.steps),
            f"{1000 * curve.seconds / max(1, curve.steps):.0f}",
            f"{curve.seconds:.0f}",
            f"{100 * curve.best.mean_iou:.1f}",
            f"{100 * last.mean_iou:.1f}",
            unary,
            f"{last.nll:.3f}",
            "-" if reached is None else str(reached.step),
            "-" if reached is None else f"{reached.seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(curves: Mapping[str, Curve], path: Path) -> None:
    """Validation loss and mean IoU of every mode against steps and seconds, as a picture file."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for index, (name, curve) in enumerate(curves.items()):
        title = name if curve.error is None else f"{name} (loss not finite)"
        style = {"color": f"C{index}", "marker": "o", "markersize": 3, "linewidth": 1.4}
        for column, where in enumerate(("step", "seconds")):
            places = [getattr(point, where) for point in curve.points]
            axes[0][column].plot(places, [point.nll for point in curve.points], **style)
            scores = [100 * point.mean_iou for point in curve.points]
            axes[1][column].plot(places, scores, **style, label=title if column == 0 else None)
    axes[0][0].set_ylabel("validation: -log marginal of the truth")
    axes[1][0].set_ylabel("validation: mean IoU, %")
    axes[1][0].set_xlabel("steps")
    axes[1][1].set_xlabel("seconds of training steps")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1][0].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path)
