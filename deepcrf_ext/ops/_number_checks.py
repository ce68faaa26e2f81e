"""Checks of single numbers: Python's and NumPy's, never booleans.

Every check names the argument, says what it was and what it must be.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether `value` is a real number of Python or NumPy."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iuf"
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def checked_number(name: str, value: Any, positive: bool = False) -> float:
    """`value` as a float: finite and, where asked for, positive."""
    if not is_number(value):
        raise TypeError(f"{name}: got {type(value).__name__}, must be a number")
    # As comparisons: compiled code may hold a number of unknown value.
    if not (0 if positive else -math.inf) < value < math.inf:
        must = "positive and finite" if positive else "finite"
        raise ValueError(f"{name}: got {value}, must be {must}")
    return float(value)


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
