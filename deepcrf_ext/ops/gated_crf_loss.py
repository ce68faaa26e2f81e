"""Operator `gated_crf_loss`: near pixels of like colour should have like labels.

Where a gradient is wanted, it is formed in the pass that computes the loss, and backward only
scales it. The loss is quadratic in the probabilities: its gradient is a symmetric matrix times
them, and the gradient of that is the same matrix times what comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._autocast import accumulate_dtype, result_dtype
from deepcrf_ext.ops._func_transforms import wants_gradient
from deepcrf_ext.ops._image_checks import check_range
from deepcrf_ext.ops._loss_arguments import (
    checked_segmentation,
    num_pixels,
    sum_by_axes,
)
from deepcrf_ext.ops._number_checks import checked_int, checked_number
from deepcrf_ext.ops._registration import operator

GatedKernel = tuple[float, float, float | None]
"""Weight, standard deviation in pixels, standard deviation in colour (None: positions alone)."""

KERNELS: tuple[GatedKernel, ...] = ((0.9, 6.0, 15.0), (0.1, 6.0, None))
MOST_KERNELS = 16


def checked_kernels(kernels: Any) -> list[GatedKernel]:
    """`kernels` as at most `MOST_KERNELS` tuples of floats."""
    if not isinstance(kernels, (list, tuple)):
        raise TypeError(f"kernels: got {type(kernels).__name__}, must be a list or tuple")
    if len(kernels) > MOST_KERNELS:
        raise ValueError(f"kernels: got {len(kernels)}, must be at most {MOST_KERNELS}")
    checked: list[GatedKernel] = []
    for i, kernel in enumerate(kernels):
        if not isinstance(kernel, (list, tuple)) or len(kernel) != 3:
            raise ValueError(f"kernels[{i}]: got {kernel!r}, must be (weight, sxy, srgb or None)")
        weight, sxy, srgb = kernel
        checked.append(
            (
                checked_number(f"kernels[{i}] weight", weight),
                checked_number(f"kernels[{i}] sxy", sxy, positive=True),
                None if srgb is None else checked_number(f"kernels[{i}] srgb", srgb, positive=True),
            )
        )
    return checked


def gated_crf_loss(
    probabilities: Tensor,
    image: Tensor,
    radius: int = 5,
    kernels: Sequence[GatedKernel] = KERNELS,
    mask: Tensor | None = None,
) -> Tensor:
    """Charge each pixel for the neighbours of like colour that get another label.

    The mean over pixels p (of ``mask``) of

        ``Σ_q Σ_kernels w exp(-½ |Δposition|² / sxy² - ½ |Δcolour|² / srgb²) (1 - Σ_k S_pk S_qk)``

    over all other pixels q of the image, inside the mask or not, that lie within ``radius`` of p
    along each axis; S are the probabilities (Obukhov et al., "Gated CRF Loss for Weakly Supervised
    Semantic Image Segmentation", 2019). Exact, no lattice. Added with a small weight to the loss of
    the labelled pixels, it teaches the others.

    Time grows with ``(2 radius + 1)^axes``, memory does not: beside its inputs the operator holds
    the gradient and, on the CPU, a padded copy of one image of the batch.

    Args:
        probabilities: S [B, K, *S], one to three spatial axes, floating point. Differentiable, to
            any order; after the first, each costs a pass more.
        image: [B, C, *S], C >= 1, uint8 or floating point, in the units of ``srgb``. A constant: it
            gets no gradient.
        radius: in pixels, >= 0; as far as the image goes.
        kernels: at most 16 of (weight, sxy in pixels, srgb), srgb None for positions alone.
        mask: the pixels p that count, [B, *S] or [B, 1, *S], bool or of any real dtype; numbers
            other than 0 and 1 are weights of the mean. None for all. No gradient.

    Returns:
        A scalar in the dtype of ``probabilities``, as `torch.nn.functional.cross_entropy` has it;
        under `torch.autocast` at least float32. 0 where nothing is in the mask. float64 is computed
        in float64, all else in float32.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Warns:
        UserWarning: once, a floating-point image within 0..1, or of both signs within two widths,
            meets colour widths of 1 or more. Not on CUDA and not in compiled code, where values are
            not seen.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> logits = torch.randn(2, 4, 24, 32, requires_grad=True)
        >>> image = torch.randint(256, (2, 3, 24, 32), dtype=torch.uint8)
        >>> dc.gated_crf_loss(logits.softmax(1), image).backward()
    """
    mask = checked_segmentation(probabilities, image, mask)
    radius = min(checked_int("radius", radius, at_least=0), 2**31)  # beyond any image
    terms = checked_kernels(kernels)
    widths = [srgb for _, _, srgb in terms if srgb is not None]
    if widths:
        check_range(image, "srgb", widths)
    factors = []
    for weight, sxy, srgb in terms:
        factors += [weight, 0.5 / sxy / sxy, 0.0 if srgb is None else 0.5 / srgb / srgb]
    differentiate = wants_gradient(probabilities)
    total, _ = gated_crf_loss_total(
        probabilities, image.detach(), mask, radius, factors, differentiate
    )
    if mask is None:
        mean = total / num_pixels(probabilities)
    else:
        count = sum_by_axes(mask, torch.float64)
        mean = total / count.where(count != 0, 1)
    return mean.to(result_dtype(probabilities.dtype, probabilities.device))


def _fake_total(
    probabilities: Tensor,
    image: Tensor,
    mask: Tensor | None,
    radius: int,
    kernels: Sequence[float],
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(probabilities.dtype)
    shape = probabilities.shape if differentiate else (0,)
    return probabilities.new_empty((), dtype=dtype), probabilities.new_empty(shape, dtype=dtype)


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    probabilities, image, mask, *ctx.settings = inputs
    ctx.dtype = probabilities.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], image, mask)


def _backward(ctx: Any, grad_total: Tensor | None, grad_gradient: Tensor | None) -> tuple[Any, ...]:
    gradient, image, mask = ctx.saved_tensors
    grad = None if grad_total is None else grad_total * gradient
    if grad_gradient is not None:
        _, further = gated_crf_loss_total(grad_gradient, image, mask, *ctx.settings)
        grad = further if grad is None else grad + further
    return None if grad is None else grad.to(ctx.dtype), None, None, None, None, None


@operator(fake=_fake_total, backward=_backward, setup_context=_save_gradient)
def gated_crf_loss_total(
    probabilities: Tensor,
    image: Tensor,
    mask: Tensor | None,
    radius: int,
    kernels: Sequence[float],
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """The sum over all pixels, and its gradient in the probabilities, in the dtype of the kernel.

    Args:
        probabilities: [B, K, *S], floating point.
        image: [B, C, *S].
        mask: [B, *S], or None for ones.
        radius: >= 0.
        kernels: of each in turn: weight, factor of squared pixels, factor of squared colours (0 for
            positions alone).
        differentiate: whether the gradient is wanted; empty if not.
    """
    axes = probabilities.shape[2:]
    shape = (1,) * (3 - len(axes)) + tuple(axes)  # depth, height, width

    def prepare(tensor: Tensor) -> Tensor:
        tensor = tensor.to(accumulate_dtype(probabilities.dtype)).contiguous()
        return tensor.view(*tensor.shape[: tensor.dim() - len(axes)], *shape)

    values, gradient = prepare(probabilities), None
    total = values.new_empty(())
    if differentiate:
        gradient = torch.empty_like(values)
    weights = None if mask is None else prepare(mask)
    arguments = (values, prepare(image), weights, radius, total, gradient)
    _backend.native().gated_crf_loss(
        *arguments,
        [tuple(kernels[i : i + 3]) for i in range(0, len(kernels), 3)],
        _backend.allocator(values),
        *_backend.launch_args(values),
    )
    if gradient is None:
        return total, values.new_empty(0)
    return total, gradient.view(probabilities.shape)
