"""The gated CRF loss in plain PyTorch (Obukhov et al. 2019)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from deepcrf_ext.ops._loss_arguments import checked_segmentation
from deepcrf_ext.ops._number_checks import checked_int
from deepcrf_ext.ops.gated_crf_loss import KERNELS, GatedKernel, checked_kernels


def gated_crf_loss(
    probabilities: Tensor,
    image: Tensor,
    radius: int = 5,
    kernels: Sequence[GatedKernel] = KERNELS,
    mask: Tensor | None = None,
) -> Tensor:
    """As `deepcrf_ext.gated_crf_loss`, a step within the window at a time.

    Args:
        probabilities: S [B, K, *S], one to three spatial axes, floating point.
        image: [B, C, *S], uint8 or floating point.
        radius: of the window, >= 0.
        kernels: (weight, sxy, srgb or None) of each.
        mask: the pixels that count, [B, *S] or [B, 1, *S], or None for all.

    Returns:
        A scalar in the dtype of ``probabilities``.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    mask = checked_segmentation(probabilities, image, mask)
    radius = checked_int("radius", radius, at_least=0)
    kernels = checked_kernels(kernels)
    image = image.detach().to(probabilities.dtype)
    weights = torch.ones_like(probabilities[:, 0]) if mask is None else mask.to(image.dtype)
    total = probabilities[:0].sum()  # 0, with a gradient even where there is no pair
    reaches = [min(radius, size - 1) for size in probabilities.shape[2:]]
    for step in itertools.product(*(range(-reach, reach + 1) for reach in reaches)):
        if not any(step):
            continue
        p, q = _ends(step)
        steps = sum(axis**2 for axis in step)
        colours = (image[p] - image[q]).square().sum(1)
        affinity = torch.zeros_like(colours)
        for weight, sxy, srgb in kernels:
            exponent = torch.full_like(colours, -0.5 * steps / sxy**2)
            if srgb is not None:
                exponent = exponent - 0.5 * colours / srgb**2
            affinity = affinity + weight * exponent.exp()
        disagreement = 1 - (probabilities[p] * probabilities[q]).sum(1)
        total = total + (weights[:, None][p][:, 0] * affinity * disagreement).sum()
    weight_sum = weights.sum()
    return total / weight_sum.where(weight_sum != 0, 1)


def _ends(step: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The pixels p of [B, C, *S] for which q = p + step lies in the image, and these q."""
    everything = slice(None)
    p = [slice(max(-axis, 0), -axis if axis > 0 else None) for axis in step]
    q = [slice(max(axis, 0), axis if axis < 0 else None) for axis in step]
    return (everything, everything, *p), (everything, everything, *q)
