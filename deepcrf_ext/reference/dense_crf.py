"""The dense CRF in plain PyTorch (Krähenbühl and Koltun 2011)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from deepcrf_ext.ops.dense_crf import check_dense_crf
from deepcrf_ext.ops.dense_crf_lattices import bilateral_features, gaussian_features
from deepcrf_ext.ops.dense_crf_params import DenseCRFParams, Normalisation
from deepcrf_ext.reference.permutohedral_filter import PermutohedralLattice, gaussian_filter

Filter = Callable[[Tensor], Tensor]


def dense_crf(
    unary: Tensor,
    image: Tensor,
    params: DenseCRFParams | None = None,
    iterations: int = 10,
    exact: bool = False,
) -> Tensor:
    """Marginals of a dense CRF over the pixels of images or the voxels of volumes, by mean field.

    Args:
        unary: energies, [B, K, *S], floating point; S of one to three axes.
        image: [B, C, *S], uint8 or floating point.
        params: widths and weights of the kernels; None for the defaults.
        iterations: the number of updates, >= 0.
        exact: sum over all pairs of pixels instead of filtering on a lattice.

    Returns:
        [B, K, *S] in the dtype of ``unary``.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    params = DenseCRFParams() if params is None else params
    check_dense_crf(unary, image, params, iterations)
    results = []
    for energies, one in zip(unary.flatten(2).mT, image, strict=True):
        kernels = [
            (
                gaussian_features(image.shape[2:], params.gaussian_sxy, image.device),
                params.gaussian_weight,
            ),
            (
                bilateral_features(one, params.bilateral_sxy, params.bilateral_srgb),
                params.bilateral_weight,
            ),
        ]
        filters = [
            (_normalised(_gaussian(planes.t(), exact), energies, params.normalisation), weight)
            for planes, weight in kernels
        ]
        marginals = (-energies).softmax(1)
        for _ in range(iterations):
            total = energies
            for smooth, weight in filters:
                message = smooth(marginals)
                if isinstance(weight, Tensor) and weight.dim() == 2:
                    message = message @ weight.to(total.dtype).t()
                else:
                    message = weight * message
                if params.compatibility is None:
                    total = total - message
                else:
                    total = total + message @ params.compatibility.to(total.dtype).t()
            marginals = (-total).softmax(1)
        results.append(marginals.t())
    return torch.stack(results).view(unary.shape)


def _gaussian(features: Tensor, exact: bool) -> Filter:
    return (
        partial(gaussian_filter, features=features)
        if exact
        else PermutohedralLattice(features).filter
    )


def _normalised(smooth: Filter, energies: Tensor, normalisation: Normalisation) -> Filter:
    """The filter divided by its row sums: by their roots before and after, or by them at once."""
    sums = smooth(torch.ones_like(energies[:, :1])) + 1e-20
    if normalisation == "symmetric":
        return lambda marginals: sums.rsqrt() * smooth(sums.rsqrt() * marginals)
    if normalisation == "before":
        return lambda marginals: smooth(marginals / sums)
    if normalisation == "after":
        return lambda marginals: smooth(marginals) / sums
    return smooth
