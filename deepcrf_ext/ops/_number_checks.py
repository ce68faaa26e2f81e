"""Checks of single numbers: Python's and NumPy's, never booleans.

Every check names the argument, says what it was and what it must be.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number of Python or NumPy."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iuf"
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def checked_number(name: str, value: Any, positive: bool = False) -> float:
    """`value` as a float: finite, in float32 too, and, where asked for, positive."""
    if not is_number(value):
        raise TypeError(f"{name}: got {type(value).__name__}, must be a number")
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    # As comparisons: compiled code may hold a number of unknown value.
    if not (abs(value) <= _LARGEST and (value > 0 or not positive)):
        must = "positive and finite" if positive else "finite"
        raise ValueError(f"{name}: got {value}, must be {must} in float32")
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


def checked_iterations(iterations: Any) -> int:
    """A number of updates, as kernels count them."""
    count = checked_int("iterations", iterations, at_least=0)
    if count >= 2**31:
        raise ValueError(f"iterations: got {count}, must be below 2**31")
    return count
