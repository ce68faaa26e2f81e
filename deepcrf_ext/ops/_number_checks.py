"""Checks of single numbers: Python's and NumPy's, never booleans.

Every check names the argument, says what it was and what it must be.
"""

from __future__ import annotations

import operator
from typing import Any


def checked_int(name: str, value: Any, at_least: int | None = None) -> int:
    """`value` as an int, no smaller than `at_least`."""
    if not isinstance(value, int):
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name}: got {type(value).__name__}, must be an int") from None
    elif isinstance(value, bool):
        raise TypeError(f"{name}: got bool, must be an int")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name}: got {value}, must be at least {at_least}")
    return value
