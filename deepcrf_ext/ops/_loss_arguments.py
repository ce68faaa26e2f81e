"""What the losses over soft segmentations share: checks of their arguments, and sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops._image_checks import check_image_tensor
from deepcrf_ext.ops._tensor_checks import check_device, check_floating, check_spatial


def checked_segmentation(probabilities: Any, image: Any, mask: Any) -> Tensor | None:
    """Check probabilities [B, K, *S], an image [B, C, *S] and a mask; return the mask as [B, *S].

    The mask may be None, [B, *S] or [B, 1, *S], of any real dtype. B may be 0.
    """
    sizes: dict[str, int] = {}
    check_spatial("probabilities", probabilities, "B K", sizes)
    check_floating("probabilities", probabilities)
    check_image_tensor(image, sizes)
    check_device("image", image.device, probabilities.device, "probabilities")
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == probabilities.dim():
        check_spatial("mask", mask, "B 1", {**sizes, "1": 1})
        mask = mask.squeeze(1)
    check_spatial("mask", mask, "B", sizes)
    if mask.is_complex():
        raise TypeError(f"mask: got dtype {mask.dtype}, must be bool or a real dtype")
    check_device("mask", mask.device, probabilities.device, "probabilities")
    return mask.detach()


def sum_by_axes(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The sum, an axis at a time: its bits do not depend on the number of threads."""
    for _ in range(tensor.dim()):
        tensor = tensor.sum(-1, dtype=dtype)
    return tensor


def num_pixels(probabilities: Tensor) -> int:
    """The pixels of all images of the batch, at least 1: what the losses divide by."""
    return max(probabilities.numel() // probabilities.shape[1], 1)
