"""Losses for weak labels as modules: `DenseCRFLoss` and `GatedCRFLoss`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deepcrf_ext.ops._number_checks import checked_int
from deepcrf_ext.ops.dense_crf_loss import dense_crf_loss
from deepcrf_ext.ops.dense_crf_params import Width, checked_width
from deepcrf_ext.ops.gated_crf_loss import KERNELS, GatedKernel, checked_kernels, gated_crf_loss


class DenseCRFLoss(nn.Module):
    """`deepcrf_ext.dense_crf_loss` as a module: probabilities and image in, a scalar out.

    Args:
        sxy: standard deviation of the kernel in pixels: a number, or one for each axis.
        srgb: and in colour: a number, or one for each channel.

    Raises:
        TypeError, ValueError: a width is not positive and finite.

    Example:
        >>> import torch
        >>> from deepcrf_ext import nn as crf
        >>> loss = crf.DenseCRFLoss(sxy=20)
        >>> logits = torch.randn(2, 4, 24, 32, requires_grad=True)
        >>> image = torch.randint(256, (2, 3, 24, 32), dtype=torch.uint8)
        >>> (0.01 * loss(logits.softmax(1), image)).backward()
    """

    def __init__(self, sxy: Width = 80, srgb: Width = 13) -> None:
        super().__init__()
        self.sxy = checked_width("sxy", sxy)
        self.srgb = checked_width("srgb", srgb)

    def forward(self, probabilities: Tensor, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of [B, K, *S] on images [B, C, *S], with a mask [B, *S] or [B, 1, *S]."""
        return dense_crf_loss(probabilities, image, self.sxy, self.srgb, mask)

    def extra_repr(self) -> str:
        return f"sxy={self.sxy}, srgb={self.srgb}"


class GatedCRFLoss(nn.Module):
    """`deepcrf_ext.gated_crf_loss` as a module: probabilities and image in, a scalar out.

    Args:
        radius: of the window in pixels, >= 0.
        kernels: at most 16 of (weight, sxy in pixels, srgb), srgb None for positions alone.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> from deepcrf_ext import nn as crf
        >>> loss = crf.GatedCRFLoss(radius=3)
        >>> logits = torch.randn(2, 4, 24, 32, requires_grad=True)
        >>> image = torch.randint(256, (2, 3, 24, 32), dtype=torch.uint8)
        >>> (0.02 * loss(logits.softmax(1), image)).backward()
    """

    def __init__(self, radius: int = 5, kernels: Sequence[GatedKernel] = KERNELS) -> None:
        super().__init__()
        self.radius = checked_int("radius", radius, at_least=0)
        self.kernels = tuple(checked_kernels(kernels))

    def forward(self, probabilities: Tensor, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of [B, K, *S] on images [B, C, *S], with a mask [B, *S] or [B, 1, *S]."""
        return gated_crf_loss(probabilities, image, self.radius, self.kernels, mask)

    def extra_repr(self) -> str:
        return f"radius={self.radius}, kernels={self.kernels}"
