"""What the calls take, as tensors and numbers. Every error names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from numbers import Number
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float32]
Widths = float | Sequence[float] | ArrayLike | Tensor
Choice = TypeVar("Choice", bound=IntEnum)

CPU = torch.device("cpu")


def as_tensor(
    name: str, value: Any, shape: tuple[int, ...], device: torch.device = CPU, finite: bool = False
) -> Tensor:
    """A copy of numbers as float32 of a shape, in which -1 stands for any size.

    A tensor that requires a gradient passes it on.
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name}: got dtype {value.dtype}, must be numbers")
        tensor = value.to(device, torch.float32, copy=True)
    else:
        array = as_array(name, value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name}: got dtype {array.dtype}, must be numbers")
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            tensor = torch.from_numpy(np.array(array, np.float32, order="C")).to(device)
    fits = tensor.dim() == len(shape) and all(
        wanted in (-1, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size == -1 else str(size) for size in shape)
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, must be [{sizes}]")
    if finite and not tensor.isfinite().all():
        raise ValueError(f"{name}: got NaN or infinity, must be finite")
    return tensor


def as_array(name: str, value: Any) -> NDArray[Any]:
    """The value as an array of whatever it holds."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def is_floating(name: str, value: Any) -> bool:
    """Whether the value holds floating-point numbers."""
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return as_array(name, value).dtype.kind == "f"


def as_integer(name: str, value: Any, at_least: int) -> int:
    """A whole number; other numbers are cut to one, as there."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = int(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{name}: got {value!r}, must be an integer") from None
    if not at_least <= number < 2**31:
        raise ValueError(f"{name}: got {value}, must be from {at_least} to {2**31 - 1}")
    return number


def as_number(name: str, value: Any) -> float:
    """A number of any kind: Python's, NumPy's, a tensor or array of one."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{name}: got {value!r}, must be a number") from None


def as_choice(name: str, value: Any, kind: type[Choice]) -> Choice:
    """A member of an enumeration, given as such or by its number."""
    try:
        return kind(as_integer(name, value, 0))
    except ValueError:
        choices = ", ".join(f"{choice.name} = {choice.value}" for choice in kind)
        raise ValueError(f"{name}: got {value!r}, must be one of {choices}") from None


def as_widths(name: str, value: Widths, count: int, device: torch.device = CPU) -> Tensor:
    """`count` widths, float32: a number for all, or the first `count` of a sequence."""
    if isinstance(value, Tensor):
        given = as_tensor(name, value, (-1,) * value.dim(), device)
        fits = given.dim() == 0 or (given.dim() == 1 and len(given) >= count)
        widths = given.expand(count) if given.dim() == 0 else given[:count]
    else:
        numbers = _numbers(name, value, count)
        fits = len(numbers) == count
        widths = torch.tensor(numbers, dtype=torch.float32, device=device)
    if not fits:
        raise ValueError(f"{name}: got {value!r}, must be a number or {count} numbers")
    if not ((widths != 0) & ~widths.isnan()).all():
        raise ValueError(f"{name}: got {value!r}, must not be 0 or NaN")
    return widths


def _numbers(name: str, value: Any, count: int) -> list[float]:
    if isinstance(value, Number) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return [as_number(name, value)] * count
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: got {value!r}, must be a number or {count} numbers")
    numbers: list[float] = []
    try:
        # By index: what is longer, or a mapping, is taken there as well.
        numbers.extend(as_number(name, value[i]) for i in range(count))
    except (IndexError, KeyError):
        pass
    except TypeError as error:
        raise TypeError(f"{name}: got {value!r}, must be a number or {count} numbers") from error
    return numbers
