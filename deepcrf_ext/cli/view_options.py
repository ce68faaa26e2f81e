"""Options of how the networks see an image, spelt alike in all commands."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.views import Views

MAX_SIZE = 640
"""Longest side that networks see of a photograph, whose size nobody chose."""


def add_view_options(parser: ArgumentParser, photographs: bool = False) -> None:
    """Adds --max-size, --scales, --flip, --window, --window-overlap and --batch-statistics.

    photographs: whether large images are shrunk unless asked otherwise.
    """
    parser.add_argument(
        "--max-size",
        type=PositiveInt | Literal["auto"] | None,
        default="auto" if photographs else None,
        help="Longest side, in pixels, that the networks see at scale 1. Larger images are shrunk "
        "for them and the labels grow back to full size. Time and memory grow with the fourth "
        "power of this side, as neighbourhoods are fractions of the image; null never shrinks"
        + (f"; auto is {MAX_SIZE}, or null with --window." if photographs else "."),
    )
    parser.add_argument(
        "--scales",
        type=list[float] | float | str,
        default=list(Views.scales),
        help="Sizes in which the networks see an image, such as [0.75,1.0,1.25], as factors of its "
        "size; marginals are averaged. Time adds up, and grows with the fourth power of a factor.",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="Let them see it mirrored too, and average; not where left and right are classes.",
    )
    parser.add_argument(
        "--window",
        type=tuple[int, int] | PositiveInt | None,
        help="Let them see an image in windows of this height and width, [360,480], one after "
        "another, as large as the crops of the training; neighbourhoods are fractions of a window. "
        "Marginals are averaged where windows overlap. Default: whole images.",
    )
    parser.add_argument(
        "--window-overlap",
        type=float,
        default=Views.overlap,
        help="Share of a window that it has in common with the next one, at least.",
    )
    parser.add_argument(
        "--batch-statistics",
        type=ClosedUnitInterval,
        default=Views.batch_statistics,
        help="Share that the statistics of the image itself have in batch normalisation, 0 to 1, "
        "for images that look other than those of the training.",
    )


def views_of(arguments: Namespace) -> Views:
    """What the options of `add_view_options` give. Raises InputError for scales that are none."""
    window = arguments.window
    max_size = arguments.max_size
    if max_size == "auto":
        max_size = MAX_SIZE if window is None else None
    return Views(
        _factors(arguments.scales),
        arguments.flip,
        max_size,
        (window, window) if isinstance(window, int) else window,
        arguments.window_overlap,
        arguments.batch_statistics,
    )


def _factors(given: list[float] | float | str) -> tuple[float, ...]:
    """The factors of a list, of one number, or of numbers with commas between."""
    if isinstance(given, list):
        return tuple(given)
    try:
        return tuple(float(part) for part in str(given).split(","))
    except ValueError:
        raise InputError(
            f"scales: got {given}, must be positive factors, such as [0.75,1.0,1.25]"
        ) from None
