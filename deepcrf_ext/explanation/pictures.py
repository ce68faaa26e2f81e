"""Pictures of `explanation.analysis`: compatibility tables, and a node with its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine

from deepcrf_ext.explanation.analysis import Compatibility, NodeExplanation, log_ratio_to_chance
from deepcrf_ext.pictures.figures import LARGEST_TABLE, name_classes, save_figure
from deepcrf_ext.pictures.labels import Image, Labels, overlay

_COLOURS = "RdBu"
_MOST_LOG2 = 4.0


def compatibility_picture(
    table: Compatibility, title: str, ends: tuple[str, str], classes: Sequence[str], path: Path
) -> None:
    """Writes the tables of a relation side by side: affinity, pairs expected, pairs labelled.

    ends: what the nodes p (rows) and q (columns) of an edge are called. Blue is what goes together,
    red what does not; pairs are compared with chance, from 1/16 to 16 times as often.
    """
    side = min(max(3.0, 0.3 * len(classes)), LARGEST_TABLE)
    figure = Figure(
        figsize=(3 * side + 3.4, side + 1.9), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    )
    axes = figure.subplots(1, 3)
    affinity = table.affinity.numpy()
    most = max(float(np.abs(affinity).max()), 1e-6)
    first = _table(axes[0], affinity, most)
    for column, panel in enumerate(axes):
        name_classes(panel, classes, beside=column == 0)
    figure.colorbar(first, ax=axes[0], shrink=0.75, label="affinity, nats")
    axes[0].set_title("learnt energies")
    for index, (name, pairs) in enumerate(
        (("pairs the network expects", table.learnt), ("pairs in the labels", table.labelled)), 1
    ):
        shown = _table(axes[index], log_ratio_to_chance(pairs).numpy(), _MOST_LOG2)
        axes[index].set_title(name)
    bar = figure.colorbar(shown, ax=axes[1:], shrink=0.75, label="how often, against chance")
    ticks = [-_MOST_LOG2, -_MOST_LOG2 / 2, 0.0, _MOST_LOG2 / 2, _MOST_LOG2]
    bar.set_ticks(ticks, labels=[f"{2.0**t:g}×" if t >= 0 else f"1/{2.0**-t:g}" for t in ticks])
    axes[0].set_ylabel(f"{ends[0]} ...")
    figure.supxlabel(f"... and {ends[1]}", fontsize="medium")
    figure.suptitle(title)
    save_figure(figure, path)


def _table(axes: Axes, values: npt.NDArray[np.float64], most: float) -> AxesImage:
    axes.set_facecolor("0.85")
    shown = np.ma.masked_invalid(np.maximum(values, -most))
    return axes.imshow(shown, cmap=_COLOURS, vmin=-most, vmax=most)


def node_picture(
    explanation: NodeExplanation,
    image: Image,
    unary: Labels,
    labels: Labels,
    names: tuple[str, str],
    at: tuple[int, int],
    classes: Sequence[str],
    palette: Image,
    path: Path,
) -> None:
    """Writes the image labelled by the unary and in the end, and what each neighbour voted for.

    image: uint8 [H, W, 3] RGB. unary, labels: integers [H, W]; names: of the variants of the model
    that they are of. at: the pixel (x, y) explained.
    """
    height, width = image.shape[:2]
    count = 2 + len(explanation.gains)
    across = 3.6
    figure = Figure(
        figsize=(count * across + 1.0, across * min(max(height / width, 0.4), 1.6) + 0.9),
        layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06),
    )
    axes = figure.subplots(1, count)
    final, other = classes[explanation.label], classes[explanation.against]
    for panel, label_map, chances, title in (
        (axes[0], unary, explanation.unary_probabilities, names[0]),
        (axes[1], labels, explanation.probabilities, names[1]),
    ):
        panel.imshow(overlay(image, label_map, palette))
        best = int(chances.argmax())
        panel.set_title(f"{title}: {classes[best]} {float(chances[best]):.2f}")
    gains = [np.nan_to_num(gain.numpy()) for gain in explanation.gains.values()]
    most = max(1e-6, *(float(np.abs(gain).max()) for gain in gains))
    grey = np.repeat((image.mean(2, keepdims=True) * 0.5 + 110).clip(0, 255).astype(np.uint8), 3, 2)
    for panel, (name, gain) in zip(axes[2:], explanation.gains.items(), strict=True):
        panel.imshow(grey)
        votes = panel.imshow(
            np.ma.masked_invalid(gain.numpy()),
            cmap=matplotlib.colormaps[_COLOURS],
            vmin=-most,
            vmax=most,
            alpha=0.8,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="nearest",
        )
        panel.set_title(f"{name}: {explanation.sums[name]:+.1f}")
    for panel in axes:
        panel.plot(*at, marker="+", color="black", markersize=13, markeredgewidth=3.5)
        panel.plot(*at, marker="+", color="white", markersize=12, markeredgewidth=1.5)
        panel.set_axis_off()
    figure.colorbar(votes, ax=list(axes), shrink=0.8, label=f"nats for {final}, not {other}")
    figure.suptitle(
        f"{final} against {other}: unary {explanation.unary:+.1f}, in the end "
        f"{explanation.unary + sum(explanation.sums.values()):+.1f}"
    )
    save_figure(figure, path)
