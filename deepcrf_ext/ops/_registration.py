"""Registration of operators with torch: `torch.ops.deepcrf_ext.NAME`.

`torch.library.custom_op` does the same, but the first call of its operators loads the compiler of
torch, some 800 modules and more than a second, whether or not anything is compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_LIBRARY = torch.library.Library("deepcrf_ext", "FRAGMENT")


def operator(
    *,
    fake: Callable[..., Any],
    backward: Callable[..., tuple[Any, ...]] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Decorator: makes a function the kernel of an operator of its name, on every device, and gives
    the operator, which is called alike.

    The schema is that of the function's annotations. It must not change its arguments nor return
    one of them.

    Args:
        fake: the same without data: allocates results of the right shape, dtype and device.
        backward: `(ctx, *gradients of the results) -> gradients of the arguments`, as in
            `torch.library.register_autograd`; None where a gradient is an error.
        setup_context: `(ctx, inputs, output)`, keeps in `ctx` what `backward` needs.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, _untraced(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"deepcrf_ext::{name}", fake, lib=_LIBRARY)
        torch.library.register_autograd(
            f"deepcrf_ext::{name}",
            _refusal(name) if backward is None else backward,
            setup_context=setup_context,
            lib=_LIBRARY,
        )
        return cast(Function, getattr(torch.ops.deepcrf_ext, name).default)

    return register


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which the compiler of torch, where it is loaded, does not look into."""
    disabled: Callable[..., Any] | None = None

    def kernel(*args: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*args)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args)

    return kernel


def _refusal(name: str) -> Callable[..., Any]:
    def backward(*_: Any) -> Any:
        raise RuntimeError(f"deepcrf_ext::{name}: its gradient is not implemented")

    return backward
