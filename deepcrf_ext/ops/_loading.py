"""Objects that `torch.load` takes from a file as it does by default, with ``weights_only=True``.

It calls the functions that it was told are safe, whatever arguments a file has for them. So objects
are saved as the arguments of functions that check them. It is told of no class: a file could then
set attributes of its objects, which nothing would check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def loadable(function: Function) -> Function:
    """Decorator: tells torch that a function is safe; its `__reduce__` names it to the file."""
    torch.serialization.add_safe_globals([function])
    return function
