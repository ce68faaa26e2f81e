"""Operator `dense_crf`: mean field of a fully connected CRF with Gaussian edge potentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._autocast import accumulate_dtype, result_dtype
from deepcrf_ext.ops._data_dependent import in_one_graph
from deepcrf_ext.ops._func_transforms import wants_gradient
from deepcrf_ext.ops._number_checks import checked_iterations
from deepcrf_ext.ops._registration import operator
from deepcrf_ext.ops._tensor_checks import (
    are_seen,
    check_device,
    check_dtype,
    check_floating,
    check_spatial,
    check_tensor,
)
from deepcrf_ext.ops.dense_crf_lattices import DenseCRFLattices, check_image, check_lattices
from deepcrf_ext.ops.dense_crf_params import WEIGHTS, WIDTHS, DenseCRFParams, Normalisation
from deepcrf_ext.ops.permutohedral_filter import (
    NUM_LATTICE_TENSORS,
    PermutohedralLattice,
    permutohedral_apply,
)


@in_one_graph
def dense_crf(
    unary: Tensor,
    image: Tensor,
    params: DenseCRFParams | None = None,
    iterations: int = 10,
    lattices: DenseCRFLattices | None = None,
) -> Tensor:
    """Marginals of a dense CRF over the pixels of images or the voxels of volumes, by mean field.

    ``Q⁰ = softmax(-unary)``, then ``Q ← softmax(-unary - Σ_kernels μ · weight · K̃ Q)``, where ``K̃``
    is the Gaussian kernel between all pairs of pixels on the permutohedral lattice, normalised
    symmetrically: ``K̃ = D^-½ K D^-½``, ``D = diag(K 1)`` (Krähenbühl and Koltun 2011, and their
    code, where a pixel is also its own neighbour). Potts is ``μ = -1``, which differs from
    ``μ = 1 - I`` by the same energy for every label.

    Differentiable in the unary, the weights, the compatibility, the image and widths that are
    tensors, through the unrolled iterations; without gradients one fused call an image. The
    gradients in image and widths are those of Gaussian kernels, their sums taken on the lattice
    (`permutohedral_filter`), the normalisation's included. They cost some 2 (d + 1) filters more an
    iteration, d = S + C for the bilateral kernel; an image that wants none costs nothing.

    Time and memory are linear in pixels, classes and (time) iterations; what many channels cost,
    `permutohedral_filter` says. On the CPU, in float32, a photograph takes some 5 ns on a core and
    20 bytes a pixel and class, beside lattices of some 0.2 µs and 80 bytes a pixel (130 while they
    are built), which `lattices` saves; noise, in which few pixels share a lattice point, takes
    twice to three times as much. The lattice of the positions, the same for all images of a size,
    is kept for the next call, 256 MB of them at most. On CUDA a photograph takes some 470 bytes a
    pixel at 21 classes, lattices included: 24 (d + 1) a pixel and lattice, some 10 a pixel and
    class, 8 a lattice point and class. Building a lattice waits there for the number of its points;
    while a CUDA graph is captured, nothing waits, and there is room for the worst case instead, a
    lattice point for each of the d + 1 corners of every pixel.

    Args:
        unary: energies (such as negative log-probabilities), [B, K, *S], floating point; S of one,
            two or three axes. +inf forbids a label.
        image: [B, C, *S], uint8 or floating point, any C >= 1 with S + C <= 255. The widths are in
            its units: the default ones are for RGB in 0..255.
        params: widths and weights of the kernels; None for the defaults.
        iterations: the number of updates, >= 0.
        lattices: those of the same image and widths, where they are already built.

    Returns:
        [B, K, *S] in the dtype of ``unary``, under `torch.autocast` in float32 as that of
        `torch.softmax`; labels sum to 1. float64 is filtered in float64, other dtypes in float32.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it. On CUDA, where
            values are not looked at, a pixel without a finite energy or of a colour that is not
            finite makes NaN of all that it reaches instead, and lattices are not checked against
            widths that are tensors.

    Warns:
        UserWarning: once, a floating-point image within 0..1, or of both signs within two widths,
            meets colour widths of 1 or more. Not on CUDA and not in compiled code, where values are
            not seen.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> volume = torch.rand(1, 1, 6, 16, 16)  # one channel within 0..1
        >>> energies = torch.cat([volume, 1 - volume], 1)
        >>> params = dc.DenseCRFParams(bilateral_sxy=(2, 5, 5), bilateral_srgb=0.1)
        >>> dc.dense_crf(energies, volume, params, iterations=3).shape
        torch.Size([1, 2, 6, 16, 16])
    """
    results = [
        dense_mean_field(energies, kernels, iterations)
        for energies, kernels in _problems(unary, image, params, iterations, lattices)
    ]
    return _batch(results, unary).to(result_dtype(unary.dtype, unary.device))


@in_one_graph
def dense_crf_log_marginals(
    unary: Tensor, image: Tensor, params: DenseCRFParams, iterations: int
) -> Tensor:
    """The logarithm of `dense_crf`, in float32 at least, also of marginals that round to 0."""
    results = [
        dense_mean_field(energies, kernels, iterations, log=True)
        for energies, kernels in _problems(unary, image, params, iterations, None)
    ]
    return _batch(results, unary)


def _batch(results: list[Tensor], unary: Tensor) -> Tensor:
    """Results [K, N] of every image in the shape of the unary."""
    if not results:
        return unary.to(accumulate_dtype(unary.dtype))
    return torch.stack(results).view(unary.shape)


def _problems(
    unary: Tensor,
    image: Tensor,
    params: DenseCRFParams | None,
    iterations: int,
    lattices: DenseCRFLattices | None,
) -> list[tuple[Tensor, list[DenseKernel]]]:
    """The energies [K, N] and kernels of every image, once the arguments are checked."""
    params = DenseCRFParams() if params is None else params
    check_dense_crf(unary, image, params, iterations)
    if lattices is None:
        lattices = DenseCRFLattices.of_checked(image, params)
    else:
        check_lattices(lattices, image, *(getattr(params, name) for name in WIDTHS))
    lattices = lattices.differentiable_in(image, params)
    dtype = accumulate_dtype(unary.dtype)
    compatibilities = [_compatibility(params, name, unary, dtype) for name in WEIGHTS]
    problems = []
    for energies, bilateral in zip(unary.to(dtype).flatten(2), lattices.bilateral, strict=True):
        pairs = zip((lattices.gaussian, bilateral), compatibilities, strict=True)
        kernels = [DenseKernel.normalised(*pair, params.normalisation) for pair in pairs]
        problems.append((energies, kernels))
    return problems


def check_dense_crf(unary: Any, image: Any, params: Any, iterations: Any) -> None:
    """Check the arguments of `dense_crf`."""
    sizes: dict[str, int] = {}
    check_spatial("unary", unary, "B K", sizes)
    check_floating("unary", unary)
    if not isinstance(params, DenseCRFParams):
        raise TypeError(f"params: got {type(params).__name__}, must be a DenseCRFParams")
    check_image(image, params, sizes)
    check_device("image", image.device, unary.device, "unary")
    checked_iterations(iterations)


def _compatibility(params: DenseCRFParams, name: str, unary: Tensor, dtype: torch.dtype) -> Tensor:
    """What a kernel's messages are multiplied by: a weight for Potts, else a [K, K] matrix."""
    weight, sizes = getattr(params, name), {"K": unary.shape[1]}
    if isinstance(weight, Tensor):
        if weight.dim() == 2:
            check_tensor(name, weight, "K K", sizes)
        check_device(name, weight.device, unary.device, "unary")
        weight = weight.to(dtype)
    else:
        weight = torch.full((), weight, dtype=dtype, device=unary.device)
    if params.compatibility is None:
        return weight if weight.dim() == 0 else -weight
    check_tensor("compatibility", params.compatibility, "K K", sizes)
    check_device("compatibility", params.compatibility.device, unary.device, "unary")
    compatibility = params.compatibility.to(dtype)
    if weight.dim() == 0:
        return weight * compatibility
    with torch.autocast(unary.device.type, enabled=False):
        return compatibility @ weight


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
    def normalised(
        cls,
        lattice: PermutohedralLattice,
        compatibility: Tensor,
        normalisation: Normalisation = "symmetric",
        sums: Tensor | None = None,
    ) -> DenseKernel:
        """The kernel divided by its row sums D (see `DenseCRFParams`): those over all positions, or
        others, [N]."""
        sums = (lattice.norms(compatibility.dtype) if sums is None else sums) + 1e-20
        if normalisation == "symmetric":
            scale = sums.rsqrt()
            return cls(lattice, scale, scale, compatibility)
        ones = torch.ones_like(sums)
        if normalisation == "none":
            return cls(lattice, ones, ones, compatibility)
        scales = (1 / sums, ones) if normalisation == "before" else (ones, 1 / sums)
        return cls(lattice, *scales, compatibility)

    def message(self, marginals: Tensor) -> Tensor:
        """The energies that marginals [N, K] send along the kernel, [N, K]."""
        scaled = self.splat_scale[:, None] * marginals
        filtered = self.slice_scale[:, None] * permutohedral_apply(
            self.lattice.tensors, scaled, False, self.lattice.planes
        )
        if self.compatibility.dim() == 0:
            return -self.compatibility * filtered
        if self.compatibility.dim() == 1:
            return self.compatibility * filtered
        with torch.autocast(filtered.device.type, enabled=False):
            return filtered @ self.compatibility.t()


def dense_mean_field(
    unary: Tensor, kernels: Sequence[DenseKernel], iterations: int, log: bool = False
) -> Tensor:
    """Mean field over positions without a grid: energies [K, N] -> marginals [K, N].

    With `log` their logarithms, which are finite also where marginals round to 0.

    Raises:
        ValueError: the unary holds NaN or -inf, or a position has no finite energy. On CUDA, where
            values are not looked at, marginals become NaN instead.
    """
    for kernel in kernels:
        check_dtype("compatibility", kernel.compatibility.dtype, unary.dtype, "unary")
    planes = [kernel.lattice.planes for kernel in kernels]
    if not wants_gradient(unary, planes, [kernel.compatibility for kernel in kernels]):
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
        return dense_crf_marginals(tensors, unary, iterations, log)
    if are_seen(unary):
        _check_energies(unary)
    energies = unary.t().contiguous()
    total = energies
    for _ in range(iterations):
        marginals = (-total).softmax(1)
        total = energies
        for kernel in kernels:
            total = total + kernel.message(marginals)
    return (-total).log_softmax(1).t() if log else (-total).softmax(1).t()


def _check_energies(unary: Tensor) -> None:
    if unary.isnan().any() or unary.isneginf().any() or unary.isposinf().all(0).any():
        raise ValueError(
            "unary: got NaN, -inf, or no finite energy at a position, must hold energies with at "
            "least one finite a position"
        )


def _fake_marginals(kernels: Sequence[Tensor], unary: Tensor, iterations: int, log: bool) -> Tensor:
    return unary.new_empty(unary.shape)


@operator(fake=_fake_marginals)
def dense_crf_marginals(
    kernels: Sequence[Tensor], unary: Tensor, iterations: int, log: bool
) -> Tensor:
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
        log,
    )
    _backend.native().dense_crf(
        *arguments, _backend.allocator(prepared), *_backend.launch_args(prepared)
    )
    return marginals
