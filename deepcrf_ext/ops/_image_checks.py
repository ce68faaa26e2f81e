"""Checks of the images that kernels compare the colours of."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops._tensor_checks import FLOATING_DTYPES, are_seen, check_spatial

_PASSED_OVER = ("deepcrf_ext.", "torch.")
_warned: set[str] = set()


def check_image_tensor(image: Any, sizes: dict[str, int]) -> None:
    """Check images [B, C, *S], uint8 or floating point, B >= 0."""
    check_spatial("image", image, "B C", sizes)
    if image.dtype not in (torch.uint8, *FLOATING_DTYPES):
        raise TypeError(
            f"image: got dtype {image.dtype}, must be uint8 or floating point: float16, bfloat16, "
            "float32 or float64"
        )


def check_range(image: Tensor, name: str, width: Any, image_name: str = "image") -> None:
    """Refuse values that are not finite; warn, once each, of a range that fits no width of 1 up.

    Such are 0..1, and values on both sides of 0 that differ by no more than two widths: normalised
    ones, unlike Lab colours, Hounsfield units or bytes less their mean.

    Looks at no image on CUDA, for which nothing waits, nor in traced code.

    Args:
        image: of any shape.
        name: the argument that gives the width of the kernel in colour.
        width: that width, or several: a number, a sequence of numbers or a tensor.
        image_name: the argument that gives the image.
    """
    if not (image.is_floating_point() and image.numel() > 0 and are_seen(image)):
        return
    low, high = (float(value) for value in image.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{image_name}: got NaN or infinite values, must be finite")
    if isinstance(width, Tensor) and not are_seen(width):
        return
    narrowest = float(torch.as_tensor(width, device="cpu").detach().min())
    # Below 0 by more than the rounding of a normalisation undone.
    negative = low < -0.01 * abs(high) and high - low <= 2 * narrowest
    found = "negative values" if negative else "values within 0..1" if 0 < high <= 1 else ""
    if found and narrowest >= 1 and found not in _warned:
        _warned.add(found)
        warn_caller(
            f"{image_name}: got {found}, while {name} = {narrowest:g} is in the units of an image "
            "in 0..255; scale the image or give widths in its units"
        )


def warn_caller(message: str) -> None:
    """Warn at the line that called this package, directly or as a layer."""
    frame, level = sys._getframe(), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(_PASSED_OVER):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
