"""The dense CRF loss in plain PyTorch (Tang et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from deepcrf_ext.ops._loss_arguments import checked_segmentation, num_pixels
from deepcrf_ext.ops.dense_crf_lattices import bilateral_features, check_widths
from deepcrf_ext.ops.dense_crf_params import Width, checked_width
from deepcrf_ext.reference.permutohedral_filter import PermutohedralLattice, gaussian_filter


def dense_crf_loss(
    probabilities: Tensor,
    image: Tensor,
    sxy: Width = 80,
    srgb: Width = 13,
    mask: Tensor | None = None,
    exact: bool = False,
) -> Tensor:
    """As `deepcrf_ext.dense_crf_loss`.

    Args:
        probabilities: [B, K, *S], one to three spatial axes, floating point.
        image: [B, C, *S], uint8 or floating point.
        sxy: standard deviation of the kernel in position.
        srgb: and in colour.
        mask: what the probabilities are multiplied by, [B, *S] or [B, 1, *S], or None for ones.
        exact: sum over all pairs of pixels instead of filtering on a lattice.

    Returns:
        A scalar in the dtype of ``probabilities``.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    mask = checked_segmentation(probabilities, image, mask)
    sxy, srgb = checked_width("sxy", sxy), checked_width("srgb", srgb)
    check_widths(image, {"sxy": sxy, "srgb": srgb})
    if mask is not None:
        probabilities = probabilities * mask[:, None].to(probabilities.dtype)
    total = probabilities[:0].sum()
    for values, one in zip(probabilities.flatten(2).mT, image.detach(), strict=True):
        features = bilateral_features(one, sxy, srgb).t()
        if exact:
            filtered = gaussian_filter(values, features)
        else:
            filtered = PermutohedralLattice(features).filter(values)
        total = total + (values * filtered).sum()
    return -total / num_pixels(probabilities)
