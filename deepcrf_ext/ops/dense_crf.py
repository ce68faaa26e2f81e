"""Operator `dense_crf`: mean field of a fully connected CRF with Gaussian edge potentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._argument_checks import checked_iterations
from deepcrf_ext.ops._registration import operator
from deepcrf_ext.ops._tensor_checks import check_device, check_dtype, check_floating, check_tensor
from deepcrf_ext.ops.dense_crf_params import DenseCRFParams, bilateral_features, gaussian_features
from deepcrf_ext.ops.permutohedral_filter import (
    NUM_LATTICE_TENSORS,
    PermutohedralLattice,
    filter_dtype,
    permutohedral_apply,
)


@dataclass(frozen=True)
class DenseCRFLattices:
    """The lattices of a batch of images for some kernel widths, reusable over calls of `dense_crf`.

    `gaussian` is shared by the images of the batch, `bilateral` holds one lattice an image.
    """

    shape: torch.Size
    widths: tuple[float, float, float]
    gaussian: PermutohedralLattice
    bilateral: tuple[PermutohedralLattice, ...]

    @classmethod
    def build(cls, image: Tensor, params: DenseCRFParams) -> DenseCRFLattices:
        """The lattices of images [B, 3, H, W], as `dense_crf` takes them.

        Raises:
            TypeError, ValueError: the image does not fit, or a kernel is too narrow for its size.
        """
        check_image(image)
        height, width = image.shape[2:]
        positions = gaussian_features(height, width, params.gaussian_sxy, image.device)
        return cls(
            image.shape,
            _widths(params),
            PermutohedralLattice.from_planes(positions),
            tuple(
                PermutohedralLattice.from_planes(
                    bilateral_features(one, params.bilateral_sxy, params.bilateral_srgb)
                )
                for one in image
            ),
        )


def _widths(params: DenseCRFParams) -> tuple[float, float, float]:
    return params.gaussian_sxy, params.bilateral_sxy, params.bilateral_srgb


def check_image(image: Any) -> None:
    """Check images [B, 3, H, W], uint8 or floating point."""
    check_tensor("image", image, "B 3 H W", {"3": 3})
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"image: got dtype {image.dtype}, must be uint8 or floating point")


def dense_crf(
    unary: Tensor,
    image: Tensor,
    params: DenseCRFParams | None = None,
    iterations: int = 10,
    lattices: DenseCRFLattices | None = None,
) -> Tensor:
    """Marginals of a dense CRF over the pixels of images, by mean field.

    ``Q⁰ = softmax(-unary)``, then ``Q ← softmax(-unary - Σ_kernels weight · μ · K̃ Q)``, where ``K̃``
    is the Gaussian kernel between all pairs of pixels on the permutohedral lattice, normalised
    symmetrically: ``K̃ = D^-½ K D^-½``, ``D = diag(K 1)`` (Krähenbühl and Koltun 2011, and their
    code, where a pixel is also its own neighbour). Potts is ``μ = -1``, which differs from
    ``μ = 1 - I`` by the same energy for every label. Differentiable in the unary, the weights and
    the compatibility through the unrolled iterations; without gradients one fused call an image.

    Args:
        unary: energies (such as negative log-probabilities), [B, K, H, W], floating point. +inf
            forbids a label.
        image: RGB in 0..255, [B, 3, H, W], uint8 or floating point.
        params: widths and weights of the kernels; None for the defaults.
        iterations: the number of updates, >= 0.
        lattices: those of the same image and widths, where they are already built.

    Returns:
        [B, K, H, W] in the dtype of ``unary``; labels sum to 1. float64 is filtered in float64,
        bfloat16 in float32.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it. On CUDA, where
            nothing waits for values, a pixel without a finite energy or of a colour that is not
            finite makes NaN of all that it reaches instead.
    """
    params = DenseCRFParams() if params is None else params
    sizes: dict[str, int] = {}
    check_tensor("unary", unary, "B K H W", sizes)
    check_floating("unary", unary)
    check_image(image)
    check_tensor("image", image, "B 3 H W", {**sizes, "3": 3})
    check_device("image", image.device, unary.device, "unary")
    iterations = checked_iterations(iterations)
    if lattices is None:
        lattices = DenseCRFLattices.build(image, params)
    elif lattices.shape != image.shape or lattices.widths != _widths(params):
        raise ValueError(
            f"lattices: got those of image {list(lattices.shape)} and widths {lattices.widths}, "
            f"must be of {list(image.shape)} and {_widths(params)}"
        )
    dtype = filter_dtype(unary.dtype)
    compatibilities = [
        _compatibility(params, weight, unary, dtype)
        for weight in (params.gaussian_weight, params.bilateral_weight)
    ]
    marginals = []
    for energies, bilateral in zip(unary.to(dtype).flatten(2), lattices.bilateral, strict=True):
        kernels = [
            DenseKernel.symmetric(lattice, compatibility)
            for lattice, compatibility in zip(
                (lattices.gaussian, bilateral), compatibilities, strict=True
            )
        ]
        marginals.append(dense_mean_field(energies, kernels, iterations))
    return torch.stack(marginals).view(unary.shape).to(unary.dtype)


def _compatibility(
    params: DenseCRFParams, weight: float | Tensor, unary: Tensor, dtype: torch.dtype
) -> Tensor:
    """What a kernel's messages are multiplied by: a weight for Potts, else a [K, K] matrix."""
    if isinstance(weight, Tensor):
        check_device("weight", weight.device, unary.device, "unary")
        scale = weight.to(dtype)
    else:
        scale = torch.full((), weight, dtype=dtype, device=unary.device)
    if params.compatibility is None:
        return scale
    check_tensor("compatibility", params.compatibility, "K K", {"K": unary.shape[1]})
    check_device("compatibility", params.compatibility.device, unary.device, "unary")
    return scale * params.compatibility.to(dtype)


@dataclass(frozen=True)
class DenseKernel:
    """A Gaussian kernel between all positions: messages
    `compatibility @ (slice_scale * filter(splat_scale * Q))`.

    `splat_scale` and `slice_scale` are [N]; `compatibility` is [] (Potts: minus the weight times
    the identity), [K] (a diagonal) or [K, K], all in the dtype of the unary.
    """

    lattice: PermutohedralLattice
    splat_scale: Tensor
    slice_scale: Tensor
    compatibility: Tensor

    @classmethod
    def symmetric(cls, lattice: PermutohedralLattice, compatibility: Tensor) -> DenseKernel:
        """The kernel normalised symmetrically, by the roots of its row sums."""
        scale = (lattice.norms(compatibility.dtype) + 1e-20).rsqrt()
        return cls(lattice, scale, scale, compatibility)

    def message(self, marginals: Tensor) -> Tensor:
        """The energies that marginals [N, K] send along the kernel, [N, K]."""
        scaled = self.splat_scale[:, None] * marginals
        filtered = self.slice_scale[:, None] * permutohedral_apply(
            self.lattice.tensors, scaled, False
        )
        if self.compatibility.dim() == 0:
            return -self.compatibility * filtered
        if self.compatibility.dim() == 1:
            return self.compatibility * filtered
        with torch.autocast(filtered.device.type, enabled=False):
            return filtered @ self.compatibility.t()


def dense_mean_field(unary: Tensor, kernels: Sequence[DenseKernel], iterations: int) -> Tensor:
    """Mean field over positions without a grid: energies [K, N] -> marginals [K, N].

    Raises:
        ValueError: the unary holds NaN or -inf, or a position has no finite energy. On CUDA, where
            nothing waits for values, marginals become NaN instead.
    """
    for kernel in kernels:
        check_dtype("compatibility", kernel.compatibility.dtype, unary.dtype, "unary")
    if not (torch.is_grad_enabled() and _needs_gradient(unary, kernels)):
        tensors = [
            tensor
            for kernel in kernels
            for tensor in (
                *kernel.lattice.tensors,
                kernel.splat_scale,
                kernel.slice_scale,
                kernel.compatibility,
            )
        ]
        return dense_crf_marginals(tensors, unary, iterations)
    if not (unary.is_cuda or torch.compiler.is_compiling()):
        _check_energies(unary)
    energies = unary.t()
    marginals = (-energies).softmax(1)
    for _ in range(iterations):
        total = energies
        for kernel in kernels:
            total = total + kernel.message(marginals)
        marginals = (-total).softmax(1)
    return marginals.t()


def _needs_gradient(unary: Tensor, kernels: Sequence[DenseKernel]) -> bool:
    return unary.requires_grad or any(kernel.compatibility.requires_grad for kernel in kernels)


def _check_energies(unary: Tensor) -> None:
    if unary.isnan().any() or unary.isneginf().any() or unary.isposinf().all(0).any():
        raise ValueError(
            "unary: got NaN, -inf, or no finite energy at a position, must hold energies with at "
            "least one finite a position"
        )


def _fake_marginals(kernels: Sequence[Tensor], unary: Tensor, iterations: int) -> Tensor:
    return unary.new_empty(unary.shape)


@operator(fake=_fake_marginals)
def dense_crf_marginals(kernels: Sequence[Tensor], unary: Tensor, iterations: int) -> Tensor:
    """The whole loop in one call: the tensors of each kernel in turn, energies [K, N]."""
    prepared = unary.contiguous()
    marginals = torch.empty_like(prepared)
    size = NUM_LATTICE_TENSORS + 3
    groups = [kernels[i : i + size] for i in range(0, len(kernels), size)]
    arguments = (
        [(tuple(group[:-3]), *(tensor.contiguous() for tensor in group[-3:])) for group in groups],
        prepared,
        iterations,
        marginals,
    )
    workspace = _backend.workspace("dense_crf_workspace", prepared, *arguments)
    _backend.native().dense_crf(*arguments, workspace, *_backend.launch_args(prepared))
    return marginals
