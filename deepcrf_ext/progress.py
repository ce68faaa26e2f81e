"""Progress on stderr: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS = 10.0
"""At least between two lines."""


def progress(
    items: Iterable[Item], total: int, verb: str, unit: str, quiet: bool = False
) -> Iterator[Item]:
    """The items, while stderr shows how many of `total` are done, unless it is to be quiet."""
    if quiet or sys.stderr.isatty():
        yield from tqdm(items, verb, total, unit=unit, leave=False, disable=quiet)
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= SECONDS:
            shown = now
            left = (now - start) / done * (total - done)
            print(f"{verb}: {done} of {total} {unit}s, {left:.0f} s left", file=sys.stderr)
