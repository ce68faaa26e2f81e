"""Plots of scores: of each class, confusion matrices, and of the trials of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from deepcrf_ext.pictures.figures import LARGEST_TABLE, name_classes, save_figure

_MANY = 60  # classes of which numbers are written, at most


def confusion_plot(
    confusions: Mapping[str, npt.NDArray[np.int64]], classes: Sequence[str], path: Path | str
) -> None:
    """Writes confusion matrices side by side, as percentages of each true class.

    confusions: title -> integers [K, K], truth in rows, prediction in columns.
    classes: the K names. A class absent from the truth has an empty row.
    """
    if not confusions:
        raise ValueError("confusions: got none, must be at least one matrix")
    columns = min(len(confusions), 3)
    rows = -(-len(confusions) // columns)
    size = min(max(3.2, 0.36 * len(classes)), LARGEST_TABLE)
    figure = Figure(
        figsize=(columns * (size + 0.3) + 1.9, rows * (size + 0.3) + 1),
        layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1),
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, (title, confusion) in enumerate(confusions.items()):
        lowest = index + columns >= len(confusions)
        _confusion_axes(grid[index], confusion, classes, lowest, index % columns == 0)
        grid[index].set_title(title)
    for axes in grid[len(confusions) :]:
        axes.set_axis_off()
    figure.supxlabel("prediction", fontsize="medium")
    figure.supylabel("truth", fontsize="medium")
    figure.colorbar(grid[0].images[0], ax=list(grid), shrink=0.8, label="% of the true class")
    save_figure(figure, path)


def class_plot(
    scores: Mapping[str, npt.NDArray[np.float64]],
    classes: Sequence[str],
    quantity: str,
    path: Path | str,
) -> None:
    """Writes per-class scores as horizontal bars, one bar a row and class, and the mean last. Bars
    of more than 60 classes are thinner, without numbers.

    scores: title -> float [K], fractions in 0..1, NaN for an absent class (drawn without a bar).
    quantity: what they are, for the axis.
    """
    if not scores:
        raise ValueError("scores: got none, must be at least one row")
    names = [*classes, "mean"]
    thickness = 0.8 / len(scores)
    many = len(classes) > _MANY
    of_class = max(0.04 * len(scores), 0.16) if many else 0.16 * len(scores) + 0.14  # inches
    height = max(2.5, of_class * len(names) + 1.1)
    figure = Figure(figsize=(7.5, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    axes = figure.subplots()
    positions = np.arange(len(names), dtype=np.float64)
    positions[-1] += 0.4
    for index, (title, score) in enumerate(scores.items()):
        if len(score) != len(classes):
            raise ValueError(f"scores[{title!r}]: got {len(score)} values, must be {len(classes)}")
        mean = np.nanmean(score) if not np.isnan(score).all() else np.nan
        values = 100 * np.append(score, mean)
        offset = (index - (len(scores) - 1) / 2) * thickness
        bars = axes.barh(positions + offset, np.nan_to_num(values), thickness * 0.92, label=title)
        if not many:
            texts = ["absent" if np.isnan(value) else f"{value:.1f}" for value in values]
            axes.bar_label(bars, texts, padding=2, fontsize=7)
    axes.set_yticks(positions, names, fontsize=7 if many else None)
    axes.set_ylim(positions[-1] + 0.6, -0.6)
    axes.set_xlim(0, 108)
    axes.set_xlabel(quantity)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(len(scores), 5), frameon=False, fontsize=9)
    save_figure(figure, path)


def search_plot(
    trials: Mapping[str, Sequence[float]],
    scores: Sequence[float],
    before: float,
    quantity: str,
    path: Path | str,
) -> None:
    """Writes the score of every trial of a search against each parameter, one panel a parameter.

    trials: parameter name -> its positive value in each trial; drawn on a logarithmic axis.
    scores: of each trial, a fraction in 0..1; the best one is marked, later trials are darker.
    before: the score without what is searched for, a dashed line.
    quantity: what the scores are.
    """
    if not trials or any(
        len(values) != len(scores) or not len(scores) for values in trials.values()
    ):
        counts = {name: len(values) for name, values in trials.items()}
        raise ValueError(f"trials: got {counts} values, must be {len(scores)}, one a score")
    figure = Figure(figsize=(2.6 * len(trials) + 0.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(trials), squeeze=False, sharey=True)[0]
    percent = 100 * np.asarray(scores)
    best = int(percent.argmax())
    for axes, (name, values) in zip(panels, trials.items(), strict=True):
        axes.scatter(values, percent, c=np.arange(len(percent)), cmap="Blues", vmin=-len(percent))
        axes.scatter(values[best], percent[best], s=140, marker="*", color="tab:red", label="best")
        axes.axhline(100 * before, linestyle="--", color="0.4", label="without")
        axes.set_xscale("log")
        ticks = np.unique(np.geomspace(min(values), max(values), 3))
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(quantity)
    panels[0].legend(fontsize=8)
    save_figure(figure, path)


def _confusion_axes(
    axes: Axes,
    confusion: npt.NDArray[np.int64],
    classes: Sequence[str],
    names_below: bool,
    names_beside: bool,
) -> None:
    count = len(classes)
    if confusion.shape != (count, count):
        raise ValueError(f"confusion: got shape {confusion.shape}, must be {(count, count)}")
    truth = confusion.sum(axis=1, keepdims=True)
    percent = np.where(truth > 0, 100 * confusion / np.maximum(truth, 1), np.nan)
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    name_classes(axes, classes, below=names_below, beside=names_beside)
    for row, column in np.argwhere(percent >= 0.5) if count <= _MANY else ():
        value = percent[row, column]
        shade = "white" if value > 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)
