"""The classes and constants of pydensecrf.densecrf."""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.ops._image_checks import check_range
from deepcrf_ext.ops._tensor_checks import usable_device
from deepcrf_ext.ops.dense_crf import DenseKernel, dense_mean_field
from deepcrf_ext.ops.dense_crf_lattices import gaussian_features
from deepcrf_ext.ops.dense_crf_params import Normalisation
from deepcrf_ext.ops.permutohedral_filter import PermutohedralLattice
from deepcrf_ext.pydensecrf._arguments import (
    CPU,
    Array,
    Widths,
    as_array,
    as_choice,
    as_integer,
    as_number,
    as_tensor,
    as_widths,
    is_floating,
)


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

_LARGEST_COMPATIBILITY = 1e30
"""What it multiplies may be sums over all variables; larger ones could leave float32."""

_default_device = CPU


def set_default_device(device: str | torch.device) -> None:
    """Set where CRFs work that name no device."""
    global _default_device
    _default_device = _checked_device(device)


def _checked_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return _default_device
    checked = usable_device(device)
    if checked.type == "meta":
        raise ValueError("device: got 'meta', must be a cpu or cuda device")
    return checked


class Unary:
    """No energies, for `setUnary`; the classes below hold some."""

    energies: Tensor | None = None


class ConstUnary(Unary):
    """Energies [nlabels, nvar] for `setUnary`."""

    def __init__(self, u: ArrayLike | Tensor) -> None:
        self.energies = as_tensor("u", u, (-1, -1))


class LogisticUnary(Unary):
    """Energies L @ f for `setUnary`: L [nlabels, d], f the features [d, nvar]."""

    def __init__(self, L: ArrayLike | Tensor, f: ArrayLike | Tensor) -> None:
        self.energies = _logistic("L", L, f, CPU)


def _logistic(name: str, weights: Any, features: Any, device: torch.device) -> Tensor:
    matrix = as_tensor(name, weights, (-1, -1), device)
    return matrix @ as_tensor("f", features, (matrix.shape[1], -1), device)


class DenseCRF:
    """A fully connected CRF over `nvar` variables of `nlabels` labels.

    Further positional arguments are ignored, as there. `device` is where it works; its results are
    NumPy arrays wherever that is.
    """

    def __init__(
        self, nvar: int, nlabels: int, *_: Any, device: str | torch.device | None = None
    ) -> None:
        self._num_values = as_integer("nvar", nvar, 1)
        self._num_labels = as_integer("nlabels", nlabels, 1)
        self._device = _checked_device(device)
        self._unary: Tensor | None = None
        self._kernels: list[DenseKernel] = []

    def setUnaryEnergy(self, u: ArrayLike | Tensor, f: ArrayLike | Tensor | None = None) -> None:
        """Set the energies, [nlabels, nvar]; with features f [d, nvar] to u @ f, u [nlabels, d].

        +inf forbids a label. NaN, -inf and a variable without a finite energy are errors.
        """
        if f is None:
            self._set("u", as_tensor("u", u, (self._num_labels, self._num_values), self._device))
        else:
            self._set("u @ f", _logistic("u", u, f, self._device))

    def setUnary(self, u: Unary) -> None:
        """Set the energies of a unary; of `Unary` itself, none."""
        if not isinstance(u, Unary):
            raise TypeError(f"u: got {type(u).__name__}, must be a ConstUnary or a LogisticUnary")
        if u.energies is None:
            self._unary = None
        else:
            self._set("u", u.energies.to(self._device))

    def _set(self, name: str, energies: Tensor) -> None:
        shape = (self._num_labels, self._num_values)
        if energies.shape != shape:
            raise ValueError(f"{name}: got shape {list(energies.shape)}, must be {list(shape)}")
        # A finite sum, which is quick, says that all are.
        if not energies.sum().isfinite():
            if energies.isnan().any() or energies.isneginf().any():
                raise ValueError(f"{name}: got NaN or -inf, must be energies or +inf")
            if energies.isposinf().all(0).any():
                raise ValueError(f"{name}: got a variable whose energies are all +inf")
        self._unary = energies

    def addPairwiseEnergy(
        self,
        features: ArrayLike | Tensor,
        compat: float | ArrayLike | Tensor,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian of features [d, nvar], which are in standard deviations."""
        planes = as_tensor("features", features, (-1, self._num_values), self._device, finite=True)
        if len(planes) == 0:
            raise ValueError(
                f"features: got shape {list(planes.shape)}, must have at least one row"
            )
        self._add("features", planes, compat, kernel, normalization)

    def inference(self, niter: int) -> Any:
        """The marginals after `niter` updates, float32 [nlabels, nvar].

        A NumPy array; a tensor where something they depend on requires a gradient.
        """
        return self._marginals(as_integer("niter", niter, 0))

    def startInference(self) -> tuple[Array, Array, Array]:
        """The marginals before the first update, and two buffers that `stepInference` asks for.

        Without energies they are 0, as there; the first update gives uniform ones their place.
        """
        shape = (self._num_labels, self._num_values)
        with torch.no_grad():
            start = np.zeros(shape, np.float32) if self._unary is None else self._marginals(0)
        return start, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: Array, tmp1: Any, tmp2: Any) -> None:
        """Update the marginals `Q` in place. The two buffers are left alone."""
        with torch.no_grad():
            marginals = self._checked_marginals(Q)
            if Q.dtype.kind != "f":
                raise TypeError(f"Q: got dtype {Q.dtype}, must be floating-point")
            if not Q.flags.writeable:
                raise ValueError("Q: got a read-only array, must be writable")
            Q[...] = (-self._energies(marginals)).softmax(0).cpu().numpy()

    def klDivergence(self, Q: Array) -> float:
        """Σ Q log Q + Σ Q · unary + Σ Q · messages, the divergence up to a constant.

        Labels of marginal 0, as of energy +inf, add nothing.
        """
        with torch.no_grad():
            marginals = self._checked_marginals(Q)
            terms = marginals * (marginals.log() + self._energies(marginals))
            return float(terms.where(marginals != 0, 0).sum(dtype=torch.float64))

    def _marginals(self, iterations: int) -> Any:
        unary = self._no_energies() if self._unary is None else self._unary
        filled = dense_mean_field(_filled(unary), self._kernels, iterations)
        marginals = filled[:, : self._num_values].contiguous()
        return marginals if marginals.requires_grad else marginals.cpu().numpy()

    def _no_energies(self) -> Tensor:
        shape = (self._num_labels, self._num_values)
        return torch.zeros(shape, dtype=torch.float32, device=self._device)

    def _checked_marginals(self, Q: Any) -> Tensor:
        if not isinstance(Q, np.ndarray):
            raise TypeError(f"Q: got {type(Q).__name__}, must be the array of startInference")
        return as_tensor("Q", Q, (self._num_labels, self._num_values), self._device)

    def _energies(self, marginals: Tensor) -> Tensor:
        total = self._no_energies() if self._unary is None else self._unary
        filled = _filled(marginals).t()
        for kernel in self._kernels:
            total = total + kernel.message(filled)[: self._num_values].t()
        return total

    def _add(self, name: str, planes: Tensor, compat: Any, kernel: Any, normalization: Any) -> None:
        """Add a kernel over features [d, nvar], which come from the arguments called `name`."""
        as_choice("kernel", kernel, KernelType)
        chosen = as_choice("normalization", normalization, NormalizationType)
        compatibility = self._compatibility(compat)
        try:
            lattice = PermutohedralLattice.from_planes(_filled(planes))
        except ValueError as error:
            raise ValueError(str(error).replace("features", name, 1)) from error
        names: dict[NormalizationType, Normalisation] = {
            NormalizationType.NO_NORMALIZATION: "none",
            NormalizationType.NORMALIZE_BEFORE: "before",
            NormalizationType.NORMALIZE_AFTER: "after",
            NormalizationType.NORMALIZE_SYMMETRIC: "symmetric",
        }
        present = _filled(torch.ones_like(planes[:1]))[0]
        sums = lattice.filter(present[:, None])[:, 0]
        kernel = DenseKernel.normalised(lattice, compatibility, names[chosen], sums)
        self._kernels.append(replace(kernel, splat_scale=present * kernel.splat_scale))

    def _compatibility(self, compat: Any) -> Tensor:
        if not isinstance(compat, Tensor):
            compat = as_array("compat", compat)
            if compat.shape == ():  # a number of any kind, such as a Fraction
                compat = np.asarray(as_number("compat", compat.item()))
        if compat.ndim > 2:
            raise ValueError(f"compat: got {compat.ndim} dimensions, must be 0, 1 or 2")
        shape = (self._num_labels,) * compat.ndim
        matrix = as_tensor("compat", compat, shape, self._device, finite=True)
        if (matrix.abs() > _LARGEST_COMPATIBILITY).any():
            raise ValueError(
                f"compat: got {matrix.abs().max():g} in magnitude, must be at most "
                f"{_LARGEST_COMPATIBILITY:g}"
            )
        return (matrix + matrix.t()) / 2 if matrix.dim() == 2 else matrix


def _filled(planes: Tensor) -> Tensor:
    """Columns [d, n] filled up by zeros to a multiple of four: pydensecrf's filter has these points
    in its lattice, at the origin, and what is near them passes a little on through theirs."""
    missing = -planes.shape[1] % 4
    return functional.pad(planes, (0, missing)) if missing else planes


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of an image, row by row."""

    def __init__(
        self, w: int, h: int, nlabels: int, *_: Any, device: str | torch.device | None = None
    ) -> None:
        self._width, self._height = as_integer("w", w, 1), as_integer("h", h, 1)
        super().__init__(self._width * self._height, nlabels, device=device)

    def addPairwiseGaussian(
        self,
        sxy: Widths,
        compat: float | ArrayLike | Tensor,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian of the positions; `sxy` in pixels, one number or (x, y)."""
        self._add("sxy", self._positions(sxy), compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: Widths,
        srgb: Widths,
        rgbim: ArrayLike | Tensor,
        compat: float | ArrayLike | Tensor,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian of positions and colours of an image [height, width, 3]; `srgb` in the
        units of the image, one number or (r, g, b).

        Warns, once, of a floating-point image within 0..1 that meets a `srgb` of 1 or more."""
        shape = (self._height, self._width, 3)
        image = as_tensor("rgbim", rgbim, shape, self._device, finite=True)
        widths = as_widths("srgb", srgb, 3, self._device)
        if is_floating("rgbim", rgbim):
            check_range(image, "srgb", widths.abs(), "rgbim")
        colours = image.flatten(0, 1).t() / widths[:, None]
        planes = torch.cat([self._positions(sxy), colours])
        self._add("sxy and srgb", planes, compat, kernel, normalization)

    def _positions(self, sxy: Widths) -> Tensor:
        """Columns and rows over their widths, [2, height * width]."""
        widths = as_widths("sxy", sxy, 2, self._device)
        return gaussian_features((self._height, self._width), widths.flip(0), self._device)
