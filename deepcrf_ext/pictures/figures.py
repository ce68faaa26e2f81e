"""Figures of matplotlib as files: whole, and with names as they are given."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from deepcrf_ext.whole_files import write_whole

DPI = 120
LARGEST_TABLE = 20  # inches of a side of a table of classes


def name_classes(
    axes: Axes, classes: Sequence[str], *, below: bool = True, beside: bool = True
) -> None:
    """Names the columns and the rows of a table of classes [K, K], where asked for; the names of
    many classes are small."""
    font = min(10.0, 60 * LARGEST_TABLE / len(classes))
    columns, rows = (classes if shown else () for shown in (below, beside))
    axes.set_xticks(
        range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize=font
    )
    axes.set_yticks(range(len(rows)), rows, fontsize=font)


def save_figure(figure: Figure, path: Path | str, **options: Any) -> None:
    """Writes a figure whole, in the format of the path's suffix; otherwise as `draw_figure`."""
    path = Path(path)
    with write_whole(path) as file:
        draw_figure(figure, file, format=path.suffix[1:], **options)


def draw_figure(figure: Figure, file: BinaryIO, **options: Any) -> None:
    """Writes a figure with its texts as they are: the dollar of a class's name begins no formula,
    and letters that no font has are boxes, without a warning.

    It has `DPI` pixels an inch. options: of `Figure.savefig`.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, dpi=DPI, **options)
