"""Registration of the operators with `torch.library`, by hand.

`torch.library.custom_op` does the same, at 10 µs a call more, and 60 more where a gradient is
wanted (torch 2.13): as long as the kernels take on a small grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("deepcrf_ext", "FRAGMENT")

below_autograd = torch._C._AutoDispatchBelowAutograd
"""A context in which operators neither ask for gradients nor record anything."""


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: Callable[..., Any] | None = None,
) -> torch._ops.OpOverload:
    """Register the operator `deepcrf_ext::<schema>` and return it.

    Args:
        schema: name, arguments and results; all arguments are given by position.
        kernel: what runs, on the CPU and on CUDA devices. Lists of tensors are returned as lists.
        fake: the same on tensors without values.
        differentiable: what runs instead where an argument wants a gradient: it applies a
            `torch.autograd.Function`. None: the operator is not differentiable.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operator: torch._ops.OpOverload = getattr(torch.ops.deepcrf_ext, name).default
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"deepcrf_ext::{name}", fake, lib=_LIBRARY)

    if differentiable is not None:

        def autograd(*arguments: Any) -> Any:
            if torch.is_grad_enabled() and _want_gradient(arguments):
                return differentiable(*arguments)
            with below_autograd():
                return operator(*arguments)

        _LIBRARY.impl(name, autograd, "Autograd")
    return operator


def _want_gradient(arguments: Sequence[Any]) -> bool:
    for argument in arguments:
        if isinstance(argument, Tensor):
            if argument.requires_grad:
                return True
        elif isinstance(argument, list) and _want_gradient(argument):
            return True
    return False


def once(name: str, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients that raise where they are themselves differentiated, which is not implemented."""
    present = [gradient for gradient in gradients if gradient is not None]
    if not (torch.is_grad_enabled() and present):
        return list(gradients)
    refusing = iter(_Refusal.apply(name, torch.zeros((), requires_grad=True), *present))
    return [None if gradient is None else next(refusing) for gradient in gradients]


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, _: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(f"deepcrf_ext: {ctx.name} is differentiable once, not twice")
