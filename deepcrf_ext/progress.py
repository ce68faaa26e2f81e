"""Progress on stderr: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Shown = TypeVar("Shown", bound="Display")
SECONDS = 5.0
"""At least between two lines."""


class Display:
    """A bar on stderr where that is a terminal, lines elsewhere, nothing if quiet; a context.

    Attributes:
        bar: takes the arguments given; shows nothing unless stderr is a terminal.
        lines: whether lines are shown.
    """

    def __init__(self, quiet: bool, **bar: Any) -> None:
        terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(disable=not terminal, **bar)
        self.lines = not terminal and not quiet

    def __enter__(self: Shown) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


class Progress(Display):
    """Shows how much of some work is done; a context.

    Args:
        total: how many units there are, where it is known.
        verb: what is done with them.
        unit: one of them.
        quiet: show nothing.
    """

    def __init__(self, total: int | None, verb: str, unit: str, quiet: bool = False) -> None:
        super().__init__(quiet, total=total, desc=verb, unit=unit, leave=False)
        self.total, self.verb, self.unit = total, verb, unit
        self.done, self.note = 0, ""
        self.start = self.shown = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Counts units that are done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if not self.lines or now - self.shown < SECONDS:
            return
        self.shown = now
        text = f"{self.verb}: {self.done}"
        if self.total is not None:
            left = (now - self.start) / self.done * (self.total - self.done)
            text += f" of {self.total} {self.unit}s, {left:.0f} s left"
        else:
            text += f" {self.unit}s"
        print(text + self.note, file=sys.stderr, flush=True)

    def describe(self, note: str) -> None:
        """Says something of what is done so far, behind the rest."""
        self.note = f"; {note}"
        self.bar.set_postfix_str(note)


def progress(
    items: Iterable[Item], total: int, verb: str, unit: str, quiet: bool = False
) -> Iterator[Item]:
    """The items, while stderr shows how many of `total` are done, unless it is to be quiet."""
    with Progress(total, verb, unit, quiet) as shown:
        for item in items:
            yield item
            shown.update()
