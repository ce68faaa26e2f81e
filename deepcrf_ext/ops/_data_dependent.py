"""Functions over operators whose results have sizes that only the data tell, under `torch.compile`.

It follows such operators with ``fullgraph=True``, in exports, and where
``torch._dynamo.config.capture_dynamic_output_shape_ops`` is set. Anywhere else each of them would
end a graph at every level of the calls that lead to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def in_one_graph(function: Function) -> Function:
    """Decorator: compiled code holds the function whole or, between two graphs, calls it."""
    left_out: list[Callable[..., Any]] = []

    def is_followed() -> bool:
        """Run by the compiler while it traces; what it returns is a constant to it."""
        context = torch._guards.TracingContext.try_get()
        mode = None if context is None else context.fake_mode
        if mode is None or mode.shape_env is None or mode.shape_env.allow_dynamic_output_shape_ops:
            return True
        if not left_out:
            left_out.append(torch.compiler.disable(function))
        return False

    is_followed._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() and not is_followed():
            return left_out[0](*args, **kwargs)
        return function(*args, **kwargs)

    return cast(Function, call)
