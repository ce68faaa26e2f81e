"""Operators of the package as torch knows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def opcheck(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """`torch.library.opcheck` of the operator that a function calls."""
    torch.library.opcheck(getattr(torch.ops.deepcrf_ext, function.__name__).default, arguments)
