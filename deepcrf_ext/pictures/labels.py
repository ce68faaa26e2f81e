"""Pictures: coloured labels, overlays, legends, comparison grids and plots of the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from deepcrf_ext.data import IGNORE_INDEX

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]

_IGNORE_COLOUR = (224, 224, 224)
_DPI = 120


def colour(labels: Labels, palette: Image) -> Image:
    """Labels as an RGB picture.

    labels: integers [H, W], classes 0..K-1 or 255 (ignored; drawn light grey).
    palette: uint8 [K, 3], RGB.
    Returns uint8 [H, W, 3]. Raises ValueError for wrong shapes or a label out of range.
    """
    if labels.ndim != 2:
        raise ValueError(f"labels has shape {labels.shape}; it must be [H, W]")
    if palette.ndim != 2 or palette.shape[1] != 3 or palette.dtype != np.uint8:
        raise ValueError(f"palette is {palette.dtype} {palette.shape}; it must be uint8 [K, 3]")
    valid = labels[labels != IGNORE_INDEX]
    if valid.size and (valid.min() < 0 or valid.max() >= len(palette)):
        raise ValueError(
            f"labels has values {valid.min()}..{valid.max()}; "
            f"they must be in 0..{len(palette) - 1} or {IGNORE_INDEX}"
        )
    table = np.tile(np.array(_IGNORE_COLOUR, np.uint8), (max(len(palette), IGNORE_INDEX + 1), 1))
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = _IGNORE_COLOUR
    return table[labels]


def overlay(image: Image, labels: Labels, palette: Image, alpha: float = 0.55) -> Image:
    """The image tinted with its labels, borders between labels drawn dark.

    image: uint8 [H, W, 3] RGB; labels and palette as in `colour`. alpha: 0 shows the image alone, 1
    the colours alone. Ignored pixels stay as they are. Returns uint8 [H, W, 3].
    """
    if image.shape != (*labels.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image is {image.dtype} {image.shape}; it must be uint8 {(*labels.shape, 3)}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be in 0..1")
    tinted = cv2.addWeighted(image, 1 - alpha, colour(labels, palette), alpha, 0)
    mixed: Image = np.asarray(tinted, np.uint8)
    borders, ignored = _borders(labels), labels == IGNORE_INDEX
    mixed[borders] = mixed[borders] // 3
    mixed[ignored] = image[ignored]
    return mixed


def write_picture(path: Path, picture: Image) -> None:
    """Writes a picture, uint8 [H, W, 3] RGB, in the format of the path's suffix.

    Raises OSError when it cannot be encoded or written.
    """
    encoded, data = cv2.imencode(path.suffix, picture[..., ::-1])
    if not encoded:
        raise OSError(f"{path}: cannot be encoded")
    path.write_bytes(data.tobytes())


def legend(classes: Sequence[str], palette: Image) -> Image:
    """A picture that names every colour: uint8 [h, w, 3] RGB, one column of swatches with names."""
    _check_classes(classes, palette)
    figure = Figure(
        figsize=(0.8 + 0.1 * max(len(name) for name in classes), 0.222 * len(classes) + 0.2)
    )
    figure.set_dpi(_DPI)
    figure.legend(
        handles=_swatches(classes, palette),
        loc="center",
        frameon=False,
        fontsize=11,
        labelspacing=0.45,
        handlelength=1.6,
    )
    return _render(figure)


def picture_grid(
    rows: Sequence[Sequence[Image]],
    column_titles: Sequence[str],
    path: Path | str,
    classes: Sequence[str] = (),
    palette: Image | None = None,
) -> None:
    """Writes a grid of pictures, one example a row, a title above each column.

    rows: for each example its pictures, uint8 [H, W, 3] RGB of any size (labels: see `colour`).
    column_titles: one title a column.
    path: the picture to write; its suffix chooses the format.
    classes, palette: when given, a legend of the classes is put below the grid.
    """
    if not rows:
        raise ValueError("rows is empty; it must hold at least one row of pictures")
    for index, row in enumerate(rows):
        if len(row) != len(column_titles):
            raise ValueError(
                f"rows[{index}] has {len(row)} pictures; "
                f"it must have {len(column_titles)}, one a column title"
            )
    column_width = 2.6  # inches
    shapes = [row[0].shape for row in rows]
    heights = [column_width * min(max(h / w, 0.2), 2.0) for h, w, _ in shapes]
    title_height, gap = 0.35, 0.06
    legend_columns = min(len(classes), max(1, int(column_width * len(column_titles) / 1.35)))
    legend_rows = -(-len(classes) // legend_columns) if classes else 0
    legend_height = 0.2 + 0.24 * legend_rows if classes else gap
    width = len(column_titles) * (column_width + gap) + gap
    height = title_height + sum(heights) + gap * (len(rows) - 1) + legend_height
    figure = Figure(figsize=(width, height))
    figure.set_dpi(_DPI)
    top = height - title_height
    for row, row_height in zip(rows, heights, strict=True):
        top -= row_height
        for column, picture in enumerate(row):
            left = gap + column * (column_width + gap)
            axes = figure.add_axes(
                (left / width, top / height, column_width / width, row_height / height)
            )
            axes.imshow(
                picture, interpolation="nearest" if picture.shape[1] < 300 else "antialiased"
            )
            axes.set_axis_off()
        top -= gap
    for column, title in enumerate(column_titles):
        centre = gap + column * (column_width + gap) + column_width / 2
        middle = height - title_height / 2
        figure.text(centre / width, middle / height, title, ha="center", va="center", fontsize=12)
    if classes and palette is not None:
        _check_classes(classes, palette)
        figure.legend(
            handles=_swatches(classes, palette),
            loc="lower center",
            ncols=legend_columns,
            frameon=False,
            fontsize=9,
            columnspacing=1.2,
            handlelength=1.4,
            borderaxespad=0.2,
        )
    figure.savefig(path)


def confusion_plot(
    confusions: Mapping[str, npt.NDArray[np.int64]], classes: Sequence[str], path: Path | str
) -> None:
    """Writes confusion matrices side by side, as percentages of each true class.

    confusions: title -> integers [K, K], truth in rows, prediction in columns.
    classes: the K names. A class absent from the truth has an empty row.
    """
    if not confusions:
        raise ValueError("confusions is empty; it must hold at least one matrix")
    columns = min(len(confusions), 3)
    rows = -(-len(confusions) // columns)
    size = max(3.2, 0.36 * len(classes))
    figure = Figure(
        figsize=(columns * (size + 0.3) + 1.9, rows * (size + 0.3) + 1),
        layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1),
    )
    figure.set_dpi(_DPI)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (title, confusion) in zip(grid, confusions.items(), strict=False):
        _confusion_axes(axes, confusion, classes)
        axes.set_title(title)
    for axes in grid[len(confusions) :]:
        axes.set_axis_off()
    for axes in grid[max(len(confusions) - columns, 0) : len(confusions)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("prediction", fontsize="medium")
    figure.supylabel("truth", fontsize="medium")
    figure.colorbar(grid[0].images[0], ax=list(grid), shrink=0.8, label="% of the true class")
    figure.savefig(path)


def class_plot(
    scores: Mapping[str, npt.NDArray[np.float64]],
    classes: Sequence[str],
    quantity: str,
    path: Path | str,
) -> None:
    """Writes per-class scores as horizontal bars, one bar a row and class, and the mean last.

    scores: title -> float [K], fractions in 0..1, NaN for an absent class (drawn without a bar).
    quantity: what they are, for the axis.
    """
    if not scores:
        raise ValueError("scores is empty; it must hold at least one row")
    names = [*classes, "mean"]
    thickness = 0.8 / len(scores)
    height = max(2.5, (0.16 * len(scores) + 0.14) * len(names) + 1.1)
    figure = Figure(figsize=(7.5, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    figure.set_dpi(_DPI)
    axes = figure.subplots()
    positions = np.arange(len(names), dtype=np.float64)
    positions[-1] += 0.4
    for index, (title, score) in enumerate(scores.items()):
        if len(score) != len(classes):
            raise ValueError(
                f"scores[{title!r}] has {len(score)} values; it must have {len(classes)}"
            )
        mean = np.nanmean(score) if not np.isnan(score).all() else np.nan
        values = 100 * np.append(score, mean)
        offset = (index - (len(scores) - 1) / 2) * thickness
        bars = axes.barh(positions + offset, np.nan_to_num(values), thickness * 0.92, label=title)
        texts = ["absent" if np.isnan(value) else f"{value:.1f}" for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=7)
    axes.set_yticks(positions, names)
    axes.set_ylim(positions[-1] + 0.6, -0.6)
    axes.set_xlim(0, 108)
    axes.set_xlabel(quantity)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(len(scores), 5), frameon=False, fontsize=9)
    figure.savefig(path)


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
        raise ValueError("trials: every parameter must have one value for each of the scores")
    figure = Figure(figsize=(2.6 * len(trials) + 0.6, 3.4), layout="constrained")
    figure.set_dpi(_DPI)
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
    figure.savefig(path)


def _confusion_axes(axes: Axes, confusion: npt.NDArray[np.int64], classes: Sequence[str]) -> None:
    count = len(classes)
    if confusion.shape != (count, count):
        raise ValueError(f"confusion has shape {confusion.shape}; it must be {(count, count)}")
    truth = confusion.sum(axis=1, keepdims=True)
    percent = np.where(truth > 0, 100 * confusion / np.maximum(truth, 1), np.nan)
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(count), classes, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), classes)
    for row, column in np.argwhere(percent >= 0.5):
        value = percent[row, column]
        shade = "white" if value > 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)


def _swatches(classes: Sequence[str], palette: Image) -> list[Patch]:
    return [
        Patch(facecolor=tuple(rgb / 255), edgecolor="0.3", linewidth=0.5, label=name)
        for name, rgb in zip(classes, palette.astype(np.float64), strict=True)
    ]


def _check_classes(classes: Sequence[str], palette: Image) -> None:
    if not classes or len(classes) != len(palette):
        raise ValueError(
            f"classes has {len(classes)} names; it must have one a palette row, {len(palette)}"
        )


def _borders(labels: Labels) -> npt.NDArray[np.bool_]:
    """[H, W], true where the label to the right or below differs."""
    borders = np.zeros(labels.shape, np.bool_)
    borders[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    borders[:-1] |= labels[1:] != labels[:-1]
    return borders


def _render(figure: Figure) -> Image:
    """The figure as uint8 [h, w, 3] RGB."""
    width, height = (int(side) for side in figure.bbox.size)
    buffer = BytesIO()
    figure.savefig(buffer, format="rgba", dpi=_DPI)
    rgba = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
    picture: Image = rgba[..., :3].copy()
    return picture
