"""Plots of a reproduction as SVG that takes the text colour of the page it stands in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from deepcrf_ext.pictures.figures import save_figure

_INK = "#010203"  # unlike any other colour in the plots: replaced by currentColor in a page
_COLOURS = ("#3f7fd0", "#e0771a", "#2f9e63", "#b455b4", "#d0483f", "#7a7f87")
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.titlecolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
            "legend.labelcolor",
        ),
        _INK,
    ),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=_COLOURS),
}
_Floats = npt.NDArray[np.float64]


def write_svg(path: Path, draw: Callable[[Path], None]) -> None:
    """Calls `draw` with the path, so that what it writes suits `inline_svg`.

    The file is the same for the same data.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": path.stem}):
        draw(path)


def inline_svg(text: str, title: str) -> str:
    """An SVG file's text for use in HTML: no prologue, metadata or size, colours of the page.

    title: what a screen reader says.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}">{rest}'.replace(_INK, "currentColor")


def curves_plot(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training losses by potential, and the validation scores, over steps.

    log: the lines of a run's metrics.jsonl. Losses are means over a fiftieth of the run.
    """
    steps = [line for line in log if line["kind"] == "train"]
    checks = [line for line in log if line["kind"] == "val"]
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    window = max(1, len(steps) // 50)
    for name in _names(steps, "loss"):
        points = [(line["step"], line["loss"][name]) for line in steps if name in line["loss"]]
        blocks = [points[i : i + window] for i in range(0, len(points), window)]
        means = [np.mean(block, axis=0) for block in blocks]
        left.plot(*np.transpose(means), label=name, linewidth=1.4)
    for name in _names(checks, "mean_iou"):
        points = [(c["step"], 100 * c["mean_iou"][name]) for c in checks if name in c["mean_iou"]]
        right.plot(*np.transpose(points), marker="o", markersize=4, label=name)
    left.set(title="training loss", xlabel="step", ylabel="negative log-likelihood")
    right.set(title="mean IoU while training", xlabel="step", ylabel="%")
    for axes in (left, right):
        axes.grid()
        if axes.lines:
            axes.legend(fontsize=8)
    save_figure(figure, path, metadata={"Date": None})


def gains_plot(gains: Mapping[str, _Floats], classes: Sequence[str], path: Path) -> None:
    """Gain in IoU of each class as bars, one bar a row of the ablation.

    gains: row name -> float [K], in points of IoU; NaN for a class without a score.
    """
    figure = Figure(
        figsize=(8, 1.1 + len(classes) * (0.14 + 0.14 * len(gains))), layout="constrained"
    )
    axes: Axes = figure.subplots()
    places = np.arange(len(classes))
    thickness = 0.8 / max(len(gains), 1)
    for index, (name, values) in enumerate(gains.items()):
        offset = (index - (len(gains) - 1) / 2) * thickness
        bars = axes.barh(places + offset, np.nan_to_num(values), 0.92 * thickness, label=name)
        texts = ["absent" if np.isnan(value) else f"{value:+.1f}" for value in values]
        axes.bar_label(bars, texts, padding=3, fontsize=7, color=_INK)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.margins(x=0.14)
    axes.set_yticks(places, classes)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlabel("gain in IoU over the unary, points")
    axes.grid(axis="x")
    if gains:
        figure.legend(loc="outside upper center", ncols=len(gains), fontsize=9)
    save_figure(figure, path, metadata={"Date": None})


def _names(lines: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Every name that a value of `key` has, in order of appearance."""
    return list(dict.fromkeys(name for line in lines for name in line[key]))
