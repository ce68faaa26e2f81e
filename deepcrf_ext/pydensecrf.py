"""The interface of pydensecrf on this package's dense CRF: existing scripts change their imports.

    import deepcrf_ext.pydensecrf as dcrf                          # was: pydensecrf.densecrf
    from deepcrf_ext.pydensecrf import unary_from_softmax          # was: pydensecrf.utils

Energies, features, kernels, compatibilities (a number w is Potts, -w on the diagonal; an array [K]
a diagonal; an array [K, K], made symmetric) and normalisations mean what they mean there, and
marginals agree to rounding. Differences:

- Arrays of any dtype and layout are taken, not only contiguous float32.
- `inference`, `startInference` and `stepInference` give and take NumPy arrays, float32 [K, N]; NaN
  in an argument is a ValueError.
- `kernel` is checked and otherwise ignored, as it changes nothing without learning the features'
  scale, which is not offered: learn weights and compatibilities with `deepcrf_ext.dense_crf`.
- Logistic unaries are set by `setUnary(LogisticUnary(L, f))` alone, not by `setUnaryEnergy(L, f)`.
- A label out of range is an error in `unary_from_labels`; there it wraps around or fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from deepcrf_ext.ops.dense_crf import DenseKernel, dense_mean_field
from deepcrf_ext.ops.dense_crf_lattices import gaussian_features
from deepcrf_ext.ops.permutohedral_filter import PermutohedralLattice

Array = NDArray[np.float32]
Widths = float | Sequence[float]


class KernelType(IntEnum):
    """What a learner of the features' scale may change."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """Where the filter is divided by the filter of ones."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType


class ConstUnary:
    """Energies [nlabels, nvar] for `setUnary`."""

    def __init__(self, u: ArrayLike) -> None:
        self.energies = _tensor("u", u, (-1, -1))


class LogisticUnary:
    """Energies L @ f for `setUnary`: L [nlabels, d], f the features [d, nvar]."""

    def __init__(self, L: ArrayLike, f: ArrayLike) -> None:
        weights = _tensor("L", L, (-1, -1))
        self.energies = weights @ _tensor("f", f, (weights.shape[1], -1))


class DenseCRF:
    """A fully connected CRF over `nvar` variables of `nlabels` labels."""

    def __init__(self, nvar: int, nlabels: int) -> None:
        for name, value in (("nvar", nvar), ("nlabels", nlabels)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, must be at least 1")
        self._num_values = int(nvar)
        self._num_labels = int(nlabels)
        self._unary = torch.zeros(self._num_labels, self._num_values)
        self._kernels: list[DenseKernel] = []

    def setUnaryEnergy(self, u: ArrayLike) -> None:
        """Set the energies, [nlabels, nvar]."""
        self._unary = _tensor("u", u, (self._num_labels, self._num_values))

    def setUnary(self, u: ConstUnary | LogisticUnary) -> None:
        """Set the energies of a unary."""
        self.setUnaryEnergy(u.energies)

    def addPairwiseEnergy(
        self,
        features: ArrayLike,
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian of features [d, nvar], which are in standard deviations."""
        self._add(
            _tensor("features", features, (-1, self._num_values)), compat, kernel, normalization
        )

    def inference(self, niter: int) -> Array:
        """The marginals after `niter` updates, float32 [nlabels, nvar]."""
        return dense_mean_field(self._unary, self._kernels, niter).numpy()

    def startInference(self) -> tuple[Array, Array, Array]:
        """The marginals before the first update, and two arrays that `stepInference` asks for."""
        marginals = self.inference(0)
        return marginals, np.empty_like(marginals), np.empty_like(marginals)

    def stepInference(self, Q: Array, tmp1: Array, tmp2: Array) -> None:
        """Update the marginals `Q` in place. The other two are left alone."""
        energies = self._unary + self._messages(torch.from_numpy(Q))
        Q[...] = (-energies).softmax(0).numpy()

    def klDivergence(self, Q: Array) -> float:
        """Σ Q log Q + Σ Q · unary + Σ Q · messages, the divergence up to a constant."""
        marginals = torch.from_numpy(Q).double()
        entropy = marginals * marginals.clamp(min=1e-20).log()
        energies = self._unary.double() + self._messages(torch.from_numpy(Q)).double()
        return float((entropy + marginals * energies).sum())

    def _messages(self, marginals: Tensor) -> Tensor:
        total = torch.zeros_like(self._unary)
        for kernel in self._kernels:
            total += kernel.message(marginals.t()).t()
        return total

    def _add(
        self, features: Tensor, compat: float | ArrayLike, kernel: int, normalization: int
    ) -> None:
        KernelType(kernel)
        lattice = PermutohedralLattice.from_planes(features)
        norms = lattice.norms(torch.float32) + 1e-20
        ones = torch.ones_like(norms)
        splat, slice_ = {
            NormalizationType.NO_NORMALIZATION: (ones, ones),
            NormalizationType.NORMALIZE_BEFORE: (1 / norms, ones),
            NormalizationType.NORMALIZE_AFTER: (ones, 1 / norms),
            NormalizationType.NORMALIZE_SYMMETRIC: (norms.rsqrt(), norms.rsqrt()),
        }[NormalizationType(normalization)]
        self._kernels.append(DenseKernel(lattice, splat, slice_, self._compatibility(compat)))

    def _compatibility(self, compat: float | ArrayLike) -> Tensor:
        dims = np.ndim(compat)
        if dims > 2:
            raise ValueError(f"compat: got {dims} dimensions, must be 0, 1 or 2")
        matrix = _tensor("compat", compat, (self._num_labels,) * dims)
        return (matrix + matrix.t()) / 2 if dims == 2 else matrix


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of an image, row by row."""

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        for name, value in (("w", w), ("h", h)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, must be at least 1")
        super().__init__(w * h, nlabels)
        self._width, self._height = int(w), int(h)

    def addPairwiseGaussian(
        self,
        sxy: Widths,
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian of the positions; `sxy` in pixels, one number or (x, y)."""
        self._add(self._positions(sxy), compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: Widths,
        srgb: Widths,
        rgbim: ArrayLike,
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian of positions and colours of an image [height, width, 3]; `srgb` in the
        units of the image, one number or (r, g, b)."""
        image = _tensor("rgbim", rgbim, (self._height, self._width, 3))
        colours = image.flatten(0, 1).t() / _widths("srgb", srgb, 3)[:, None]
        self._add(torch.cat([self._positions(sxy), colours]), compat, kernel, normalization)

    def _positions(self, sxy: Widths) -> Tensor:
        pixels = gaussian_features((self._height, self._width), 1.0, torch.device("cpu"))
        return pixels / _widths("sxy", sxy, 2)[:, None]


def unary_from_labels(
    labels: ArrayLike, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> Array:
    """Energies of a labelling that is right with probability `gt_prob`, float32 [n_labels, N].

    With `zero_unsure`, 0 means "could be anything" and label k is written k + 1; `n_labels` does
    not count the 0.
    """
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob: got {gt_prob}, must lie in (0, 1)")
    flat = np.asarray(labels).reshape(-1).astype(np.int64) - int(zero_unsure)
    lowest = -1 if zero_unsure else 0
    if flat.size and (flat.min() < lowest or flat.max() >= n_labels):
        raise ValueError(
            f"labels: got {flat.min() + int(zero_unsure)}..{flat.max() + int(zero_unsure)}, "
            f"must be in 0..{n_labels - 1 + int(zero_unsure)}"
        )
    other = (1 - gt_prob) / max(n_labels - 1, 1)
    probabilities = np.where(np.arange(n_labels)[:, None] == flat, gt_prob, other)
    probabilities[:, flat < 0] = 1 / n_labels
    return -np.log(probabilities).astype(np.float32)


def compute_unary(labels: ArrayLike, M: int, GT_PROB: float = 0.5) -> Array:
    """The old name of `unary_from_labels`."""
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(
    sm: ArrayLike, scale: float | None = None, clip: float | None = 1e-5
) -> Array:
    """Energies of probabilities [K, ...], float32 [K, N].

    `scale` mixes them with uniform ones, to at most about `scale`; `clip` raises smaller ones.
    """
    probabilities = np.asarray(sm)
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale: got {scale}, must lie in (0, 1]")
        probabilities = scale * probabilities + (1 - scale) / len(probabilities)
    if clip is not None:
        probabilities = probabilities.clip(clip, 1)
    return -np.log(probabilities).reshape(len(probabilities), -1).astype(np.float32)


def softmax_to_unary(sm: ArrayLike, GT_PROB: float = 1) -> Array:
    """The old name of `unary_from_softmax`, with `GT_PROB` as its scale and nothing clipped."""
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> Array:
    """Features of positions in a grid of any number of axes: float32 [len(shape), N].

    `sdims` holds the standard deviation along each axis.
    """
    mesh = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")).astype(np.float32)
    divisors = np.asarray(sdims, np.float32).reshape(-1, *[1] * len(shape))
    return (mesh / divisors).reshape(len(shape), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: ArrayLike, chdim: int = -1
) -> Array:
    """Features of positions and channels of an image of any number of axes: float32 [d, N].

    Axis `chdim` of the image holds its channels; -1 says that it has none. `schan` holds the
    standard deviation of every channel, or one for all.
    """
    image = np.asarray(img, np.float32)
    channels = image[None] if chdim == -1 else np.moveaxis(image, chdim, 0)
    divisors = np.broadcast_to(np.asarray(schan, np.float32), len(channels))
    scaled = channels.reshape(len(channels), -1) / divisors[:, None]
    return np.concatenate([create_pairwise_gaussian(sdims, channels.shape[1:]), scaled])


def _tensor(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Tensor:
    """`value` as float32 of a shape, in which -1 stands for any size."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: got dtype {array.dtype}, must be numbers")
    fits = array.ndim == len(shape) and all(
        wanted in (-1, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: got shape {array.shape}, must be {shape}")
    return torch.tensor(array.astype(np.float32))


def _widths(name: str, value: Widths, count: int) -> Tensor:
    """A number for all, or one each, of `count` positive widths."""
    widths = np.asarray(value, np.float32)
    if widths.shape not in ((), (count,)):
        raise ValueError(f"{name}: got {value}, must be a number or {count} numbers")
    if not (np.isfinite(widths).all() and (widths > 0).all()):
        raise ValueError(f"{name}: got {value}, must be positive and finite")
    return torch.tensor(np.broadcast_to(widths, count))
