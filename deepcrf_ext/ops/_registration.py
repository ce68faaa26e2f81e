"""Registration of operators with torch: `torch.ops.deepcrf_ext.NAME`.

`torch.library.custom_op` does the same, but the first call of its operators loads the compiler of
torch, some 800 modules and more than a second, whether or not anything is compiled; and every call
takes 10 µs more, 60 where a gradient is wanted, which is as long as kernels take on a small grid.
"""

from __future__ import annotations

import functools
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from deepcrf_ext.ops._func_transforms import (
    of_batched_gradients,
    one_by_one,
    refuse_tangents,
    transformable,
    wants_gradient,
)

Function = TypeVar("Function", bound=Callable[..., Any])

_LIBRARY = torch.library.Library("deepcrf_ext", "FRAGMENT")

below_autograd = torch._C._AutoDispatchBelowAutograd
"""A context in which operators run their kernels, and nothing is recorded for a gradient."""


def operator(
    *,
    fake: Callable[..., Any],
    differentiable: Callable[..., Any] | None = None,
    backward: Callable[..., tuple[Any, ...]] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Decorator: makes a function the kernel of an operator of its name, on every device, and gives
    the operator, which is called alike.

    The schema is that of the function's annotations. It must not change its arguments nor return
    one of them.

    Args:
        fake: the same without data: allocates results of the right shape, dtype and device.
        differentiable: what runs in its place where an argument wants a gradient: it applies a
            `torch.autograd.Function`, which calls the operator in `below_autograd`. Arguments come
            by position.
        backward: `(ctx, *gradients of the results) -> gradients of the arguments`, None for a
            list, as the simpler way to say it. Where neither is given, a gradient is an error.
        setup_context: `(ctx, inputs, output)`, keeps in `ctx` what `backward` needs.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        function.__annotations__ = {
            argument: _spelt(hint) for argument, hint in typing.get_type_hints(function).items()
        }
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        registered = getattr(torch.ops.deepcrf_ext, name).default
        _LIBRARY.impl(name, _untraced(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"deepcrf_ext::{name}", fake, lib=_LIBRARY)
        recorded = differentiable or _refusal(registered)
        if backward is not None and setup_context is not None:
            recorded = _recorded(registered, backward, setup_context)
        _LIBRARY.impl(name, _choice(registered, recorded), "Autograd")
        each = one_by_one(f"deepcrf_ext::{name}", registered)
        torch.library.register_vmap(f"deepcrf_ext::{name}", each, lib=_LIBRARY)
        _LIBRARY.impl(name, of_batched_gradients(each), "Batched")
        return cast(Function, functools.wraps(function)(transformable(registered)))

    return register


# What older versions of torch know `list[T]`, `Sequence[T]` and `T | None` as.
_SPELLINGS: dict[Any, Any] = {
    list: typing.List,  # noqa: UP006
    Sequence: typing.Sequence,
    types.UnionType: typing.Union,
}


def _spelt(annotation: Any) -> Any:
    generic = _SPELLINGS.get(typing.get_origin(annotation))
    if generic is None:
        return annotation
    return generic[tuple(_spelt(argument) for argument in typing.get_args(annotation))]


def _choice(registered: Any, differentiable: Callable[..., Any]) -> Any:
    """What runs `differentiable` where an argument wants a gradient, else the kernel."""

    def autograd(*args: Any) -> Any:
        if forward_ad._current_level >= 0 and _have_tangent(args):
            refuse_tangents(registered.name())
        if wants_gradient(*args):
            if torch._C._are_functorch_transforms_active():
                raise RuntimeError(
                    f"{registered.name()}: got an argument of a torch.func transform (grad, "
                    "jacrev, …) in compiled code, must be called in code that is not compiled"
                )
            return differentiable(*args)
        with below_autograd():
            return registered(*args)

    return autograd


def _have_tangent(args: Sequence[Any]) -> bool:
    tensors = (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _recorded(
    registered: Callable[..., Any],
    backward: Callable[..., tuple[Any, ...]],
    setup_context: Callable[..., None],
) -> Callable[..., Any]:
    """What runs an operator and records its backward pass."""

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with below_autograd():
                results = registered(*args)
            setup_context(ctx, args, results)
            return results

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)

    return Recorded.apply


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


def _refusal(registered: Any) -> Callable[..., Any]:
    """What runs an operator without a gradient where one is wanted: its results raise."""

    def refuse(*args: Any) -> Any:
        with below_autograd():
            results = registered(*args)
        origins = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        leaves, spec = tree_flatten(results)
        refusing = _Refusal.apply(registered.name(), len(origins), *origins, *leaves)
        return tree_unflatten(refusing, spec)

    return refuse


def once(
    name: str, gradients: Sequence[Tensor | None], origins: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients that raise where they are themselves differentiated; made by a backward pass.

    Args:
        name: what the error says has no gradient.
        gradients: of its arguments.
        origins: what they depend on.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not (torch.is_grad_enabled() and present):
        return list(gradients)
    refusing = iter(_Refusal.apply(name, len(origins), *origins, *present))
    return [None if gradient is None else next(refusing) for gradient in gradients]


class _Refusal(torch.autograd.Function):
    """Gives its last tensors on, and raises where they are differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, num_origins: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(tensor.view_as(tensor) for tensor in tensors[num_origins:])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(f"{ctx.name}: its gradient is not implemented")
