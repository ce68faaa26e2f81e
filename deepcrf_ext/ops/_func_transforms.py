"""Operators under `torch.vmap`, the transforms of `torch.func`, and batches of gradients.

The kernels know neither batches nor levels of differentiation. So a batch goes through an operator
one element after another, and a transform differentiates it by a pass of its own below all levels.
torch does neither for a registered operator: what `torch.library.register_autograd` gives refuses
the transforms, and batches of gradients stop at lists of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


def wants_gradient(*values: Any) -> bool:
    """Whether gradients are taken now, and a tensor of these, or of lists of them, wants one.

    A batch of `torch.vmap` wants one if what it was made of does, which it does not say itself.
    """
    return torch.is_grad_enabled() and (
        _any_requires_grad(values) or (in_transform() and any(map(_requires_grad_within, values)))
    )


def _any_requires_grad(values: Sequence[Any]) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                return True
        elif isinstance(value, (list, tuple)) and _any_requires_grad(value):
            return True
    return False


def _requires_grad_within(value: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    while tensors:
        if any(tensor.requires_grad for tensor in tensors):
            return True
        tensors = [_unwrapped(tensor) for tensor in tensors if _is_wrapped(tensor)]
    return False


_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_unwrapped = torch._C._functorch.get_unwrapped


def without_transforms(tensor: Tensor) -> Tensor:
    """The tensor below all transforms: of a batch of `torch.vmap` all elements."""
    if in_transform():
        while _is_wrapped(tensor):
            tensor = _unwrapped(tensor)
    return tensor


def in_transform() -> bool:
    """Whether this runs within `torch.vmap` or a transform of `torch.func`, not compiled."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


@contextmanager
def outside_transforms() -> Iterator[None]:
    """Tensors made within have nothing to do with the transforms around."""
    if not in_transform():
        yield
        return
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack():
        yield


class VmapInfo(NamedTuple):
    """What `torch.vmap` tells a rule."""

    batch_size: int


def one_by_one(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule of `torch.vmap`: the function on each element of a batch in turn."""

    def batched(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError(f"{name}: got an empty batch of torch.vmap, must have an element")
        leaves, spec = tree_flatten(args)
        axes = tree_leaves(in_dims)  # of the same tree; None for what all elements share
        results = []
        for i in range(info.batch_size):
            own = [
                leaf if axis is None else leaf.select(axis, i)
                for leaf, axis in zip(leaves, axes, strict=True)
            ]
            results.append(function(*tree_unflatten(own, spec)))
        sizes = [[leaf.shape for leaf in tree_leaves(result)] for result in results]
        if any(other != sizes[0] for other in sizes):
            raise RuntimeError(
                f"{name}: got a batch of torch.vmap whose results differ in size, "
                "must be called on each of its elements"
            )
        stacked = tree_map(lambda *each: torch.stack(each), *results)
        return stacked, tree_map(lambda _: 0, stacked)

    return batched


def of_batched_gradients(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule of `torch.vmap` as one for ``torch.autograd.grad(..., is_grads_batched=True)``.

    That, and `torch.autograd.functional.jacobian` with it, runs the backward pass on batches of an
    older kind, whose layout only torch itself sees.
    """

    def batched(*args: Any) -> Any:
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        leaves, spec = tree_flatten(args)
        axes: list[int | None] = []
        size = 0
        for i, leaf in enumerate(leaves):
            # What is no batch comes back with an axis in front of the size given, 0.
            whole = torch._remove_batch_dim(leaf, level, 0, 0) if isinstance(leaf, Tensor) else ()
            axes.append(0 if len(whole) > 0 else None)
            if len(whole) > 0:
                leaves[i], size = whole, len(whole)
        results, _ = rule(VmapInfo(size), axes, *tree_unflatten(leaves, spec))
        return tree_map(lambda whole: torch._add_batch_dim(whole, 0, level), results)

    return batched


def refuse_tangents(name: str) -> NoReturn:
    """Raises what an operator answers to forward-mode derivatives."""
    raise RuntimeError(
        f"{name}: got an argument with a tangent; forward-mode derivatives (torch.func.jvp, "
        "torch.autograd.forward_ad) are not implemented, must be taken in reverse mode"
    )


def transformable(registered: Any) -> Callable[..., Any]:
    """An operator that also runs within `torch.vmap` and the transforms of `torch.func`.

    `torch.jit.trace`, to which it would be a constant or of unknown types, gets an error.
    """

    def call(*args: Any) -> Any:
        if not in_transform():
            if torch._C._get_tracing_state() is not None:
                raise RuntimeError(
                    f"{registered.name()}: got a call of torch.jit.trace, which does not follow "
                    "it; must be of torch.export.export or torch.compile"
                )
            return registered(*args)
        leaves, spec = tree_flatten(args)

        def function(*leaves: Any) -> Any:
            results = registered(*tree_unflatten(leaves, spec))
            return tuple(results) if isinstance(results, list) else results

        return _lifted(registered.name(), function)(*leaves)

    return call


def _lifted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of ordinary tensors, and of what is none, as one of those of a transform too."""

    class Lifted(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return function(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.places = [i for i, arg in enumerate(inputs) if isinstance(arg, Tensor)]
            ctx.save_for_backward(*(inputs[i] for i in ctx.places))
            ctx.others = [None if isinstance(arg, Tensor) else arg for arg in inputs]
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
            wanted = ctx.needs_input_grad
            if all(gradient is None for gradient in gradients):
                return (None,) * len(wanted)
            args = list(ctx.others)
            for i, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
                args[i] = tensor
            of_function = _lifted(name, _gradient(function, wanted, len(gradients)))
            found = iter(of_function(*gradients, *args))
            return tuple(next(found) if want else None for want in wanted)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            refuse_tangents(name)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
            inner = Lifted.apply if in_transform() else function
            return one_by_one(name, inner)(info, in_dims, *args)

    return Lifted.apply


def _gradient(
    function: Callable[..., Any], wanted: Sequence[bool], num_results: int
) -> Callable[..., tuple[Tensor, ...]]:
    """From gradients of a function's results, None for zeros, then its arguments, to gradients of
    those wanted."""

    def gradient(*args: Any) -> tuple[Tensor, ...]:
        create_graph = wants_gradient(*args)
        own = list(args[num_results:])
        for i, want in enumerate(wanted):
            # Apart from each other, however they were made.
            if create_graph and isinstance(own[i], Tensor) and own[i].requires_grad:
                own[i] = own[i].view_as(own[i])
            elif isinstance(own[i], Tensor):
                own[i] = own[i].detach().requires_grad_(want)
        with torch.enable_grad():
            results = tree_leaves(function(*own))
        pairs = [
            (result, grad)
            for result, grad in zip(results, args[:num_results], strict=True)
            if result.requires_grad and grad is not None
        ]
        outputs, gradients = zip(*pairs, strict=True)
        inputs = [arg for arg, want in zip(own, wanted, strict=True) if want]
        return torch.autograd.grad(
            outputs, inputs, gradients, create_graph=create_graph, materialize_grads=True
        )

    return gradient
