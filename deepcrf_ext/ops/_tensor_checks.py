"""Checks of one tensor: its shape, dtype and device.

Every check names the argument, says what it was and what it must be. A wrong type or dtype is a
`TypeError`; a wrong shape or device is a `ValueError`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATING_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DEVICE_TYPES = ("cpu", "cuda")


def check_dense(name: str, value: Any) -> None:
    """Check that `value` is a dense tensor of plain numbers: not sparse, nested or quantised."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, must be a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}, must be a dense tensor")
    if value.is_nested:
        raise TypeError(f"{name}: got a nested tensor, must be a dense tensor")
    if value.is_quantized:
        raise TypeError(f"{name}: got dtype {value.dtype}, must not be quantised")


def check_tensor(name: str, value: Any, shape: str, sizes: dict[str, int]) -> None:
    """Check that `value` is a tensor whose shape is spelt by the letters of `shape`.

    `sizes` holds the known size of a letter. A letter not yet in it takes the size met here,
    which must be at least 1, and is added: one `sizes` ties the shapes of several arguments.
    """
    check_dense(name, value)
    letters = shape.split()
    fits = value.dim() == len(letters)
    if fits:
        found = dict(sizes)
        for letter, size in zip(letters, value.shape, strict=True):
            # Not `&=`, which some versions of torch cannot trace.
            fits = fits and (letter in sizes or size >= 1)
            fits = fits and found.setdefault(letter, size) == size
    if not fits:
        known = ", ".join(
            f"{letter} = {sizes[letter]}" if letter in sizes else f"{letter} >= 1"
            for letter in dict.fromkeys(letters)
            if not letter.isdigit()
        )
        rule = f"[{', '.join(letters)}]" + (f" with {known}" if known else "")
        raise ValueError(f"{name}: got shape {list(value.shape)}, must be {rule}")
    sizes.update(found)


def check_floating(name: str, value: Tensor) -> None:
    """Check that `value` has a dtype that the operators compute in, on a device they run on."""
    if value.dtype not in FLOATING_DTYPES:
        raise TypeError(
            f"{name}: got dtype {value.dtype}, must be a floating-point dtype: float16, bfloat16, "
            "float32 or float64"
        )
    check_device_type(name, value)


def check_integer(name: str, value: Tensor) -> None:
    """Check that `value` has an integer dtype."""
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: got dtype {value.dtype}, must be an integer dtype")


def check_device_type(name: str, value: Tensor) -> None:
    """Check that `value` lies on a device that the operators run on."""
    if value.device.type not in DEVICE_TYPES:
        raise ValueError(f"{name}: got device {value.device}, must be a cpu or cuda device")


def check_dtype(name: str, dtype: torch.dtype, wanted: torch.dtype, owner: str) -> None:
    """Check that `name` has the dtype `wanted`, that of the argument called `owner`."""
    if dtype != wanted:
        raise TypeError(f"{name}: got dtype {dtype}, must be {wanted} as {owner}")


def check_device(name: str, device: torch.device, wanted: torch.device, owner: str) -> None:
    """Check that `name` lies on the device `wanted`, that of the argument called `owner`."""
    if device != wanted:
        raise ValueError(f"{name}: got device {device}, must be {wanted} as {owner}")


def have_values(values: Tensor) -> bool:
    """Whether a tensor is one of its own: not in code that is traced or run for shapes alone (fake
    tensors), nor in a transform of `torch.func` or `torch.vmap`."""
    if torch.compiler.is_compiling() or isinstance(values, FakeTensor):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(values)


def are_seen(values: Tensor) -> bool:
    """Whether the values of a tensor are there to be looked at: it has values (`have_values`), and
    not on CUDA, for which nothing waits."""
    return values.device.type == "cpu" and have_values(values)


SPATIAL_LETTERS = {1: "W", 2: "H W", 3: "D H W"}


def check_spatial(name: str, value: Any, leading: str, sizes: dict[str, int]) -> None:
    """As `check_tensor`, of the letters `leading` and one to three spatial axes behind them.

    The first letter is the batch, which may be empty.
    """
    check_dense(name, value)
    known = [letters for letters in SPATIAL_LETTERS.values() if letters.split()[0] in sizes]
    axes = value.dim() - len(leading.split())
    letters = known[-1] if known else SPATIAL_LETTERS.get(axes)
    if letters is None:
        raise ValueError(
            f"{name}: got shape {list(value.shape)}, must be [{', '.join(leading.split())}, *S], "
            "S of one to three spatial axes"
        )
    if value.dim() > 0:
        sizes.setdefault(leading.split()[0], value.shape[0])
    check_tensor(name, value, f"{leading} {letters}", sizes)


def usable_device(device: torch.device | str) -> torch.device:
    """`device` with its index, checked to be usable."""
    try:
        device = torch.device(device)
    except (TypeError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"device: got {device!r}, must be a cpu or cuda device") from None
    if device.type not in (*DEVICE_TYPES, "meta"):
        raise ValueError(f"device: got '{device}', must be a cpu or cuda device")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device: got '{device}', must be 'cpu' here, as torch finds no CUDA device"
            )
        if device.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        if device.index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ValueError(f"device: got '{device}', must be one of the {count} GPUs here")
    return device
