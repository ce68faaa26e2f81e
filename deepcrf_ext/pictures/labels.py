"""Pictures of labels: coloured, over their image, in grids, and legends of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.evaluation.boundaries import outline
from deepcrf_ext.libraries import cv2
from deepcrf_ext.pictures.figures import DPI, draw_figure, save_figure
from deepcrf_ext.whole_files import write_whole

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]

_IGNORE_COLOUR = (224, 224, 224)
_BAND = 1 << 22  # pixels that are tinted at a time


def colour(labels: Labels, palette: Image) -> Image:
    """Labels as an RGB picture.

    labels: integers [H, W], classes 0..K-1 or 255 (ignored; drawn light grey).
    palette: uint8 [K, 3], RGB.
    Returns uint8 [H, W, 3]. Raises ValueError for wrong shapes or a label out of range.
    """
    if labels.ndim != 2:
        raise ValueError(f"labels: got shape {labels.shape}, must be [H, W]")
    if palette.ndim != 2 or palette.shape[1] != 3 or palette.dtype != np.uint8:
        raise ValueError(f"palette: got {palette.dtype} {palette.shape}, must be uint8 [K, 3]")
    valid = labels[labels != IGNORE_INDEX]
    if valid.size and (valid.min() < 0 or valid.max() >= len(palette)):
        raise ValueError(
            f"labels: got values {valid.min()}..{valid.max()}, "
            f"must be 0..{len(palette) - 1} or {IGNORE_INDEX}"
        )
    table = np.tile(np.array(_IGNORE_COLOUR, np.uint8), (max(len(palette), IGNORE_INDEX + 1), 1))
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = _IGNORE_COLOUR
    return table[labels]


def overlay(image: Image, labels: Labels, palette: Image, alpha: float = 0.55) -> Image:
    """The image tinted with its labels, outlines of its regions drawn dark.

    image: uint8 [H, W, 3] RGB; labels and palette as in `colour`. alpha: 0 shows the image alone, 1
    the colours alone. Ignored pixels stay as they are. Returns uint8 [H, W, 3].
    """
    if image.shape != (*labels.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image: got {image.dtype} {image.shape}, must be uint8 {(*labels.shape, 3)}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, must be 0..1")
    mixed = np.empty_like(image)
    rows = max(1, _BAND // max(image.shape[1], 1))
    for top in range(0, len(image), rows):  # in bands, which take little memory beside the result
        first, last = max(0, top - 1), min(len(image), top + rows + 1)  # outlines see neighbours
        part, own = slice(first, last), slice(top - first, top - first + rows)
        mixed[top : top + rows] = _tinted(image[part], labels[part], palette, alpha)[own]
    return mixed


def _tinted(image: Image, labels: Labels, palette: Image, alpha: float) -> Image:
    tinted = cv2.addWeighted(image, 1 - alpha, colour(labels, palette), alpha, 0)
    mixed: Image = np.asarray(tinted, np.uint8)
    borders, ignored = outline(labels), labels == IGNORE_INDEX
    mixed[borders] = mixed[borders] // 3
    mixed[ignored] = image[ignored]
    return mixed


def write_picture(path: Path, picture: Image) -> None:
    """Writes a picture, uint8 [H, W, 3] RGB, whole, in the format of the path's suffix.

    Raises OSError when it cannot be encoded or written.
    """
    encoded, data = cv2.imencode(path.suffix, picture[..., ::-1])
    if not encoded:
        raise OSError(f"{path}: cannot be encoded")
    with write_whole(path) as file:
        file.write(data.tobytes())


def legend(classes: Sequence[str], palette: Image) -> Image:
    """A picture that names every colour: uint8 [h, w, 3] RGB, one column of swatches with names."""
    _check_classes(classes, palette)
    figure = Figure(
        figsize=(0.8 + 0.1 * max(len(name) for name in classes), 0.222 * len(classes) + 0.2)
    )
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
        raise ValueError("rows: got none, must be at least one row of pictures")
    for index, row in enumerate(rows):
        if len(row) != len(column_titles):
            raise ValueError(
                f"rows[{index}]: got {len(row)} pictures, "
                f"must be {len(column_titles)}, one a column title"
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
    save_figure(figure, path)


def _swatches(classes: Sequence[str], palette: Image) -> list[Patch]:
    return [
        Patch(facecolor=tuple(rgb / 255), edgecolor="0.3", linewidth=0.5, label=name)
        for name, rgb in zip(classes, palette.astype(np.float64), strict=True)
    ]


def _check_classes(classes: Sequence[str], palette: Image) -> None:
    if not classes or len(classes) != len(palette):
        raise ValueError(
            f"classes: got {len(classes)} names, must be one a palette row, {len(palette)}"
        )


def _render(figure: Figure) -> Image:
    """The figure as uint8 [h, w, 3] RGB."""
    width, height = (int(DPI * side) for side in figure.get_size_inches())
    buffer = BytesIO()
    draw_figure(figure, buffer, format="rgba")
    rgba = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
    picture: Image = rgba[..., :3].copy()
    return picture
