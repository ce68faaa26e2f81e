"""The parameters of a dense CRF, and unary energies from predictions.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
2011: `E = Σ_p U_p(y_p) + Σ_(p<q) μ(y_p, y_q) k(p, q)` over all pairs of pixels, `k` a sum of a
Gaussian of the positions and a (bilateral) Gaussian of positions and colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from deepcrf_ext.ops._autocast import accumulate_dtype
from deepcrf_ext.ops._loading import loadable
from deepcrf_ext.ops._number_checks import checked_int, checked_number, is_number
from deepcrf_ext.ops._tensor_checks import (
    are_seen,
    check_dense,
    check_device_type,
    check_floating,
    check_integer,
    check_spatial,
    check_tensor,
)

Width = float | Sequence[float] | Tensor

WIDTHS = ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb")
Normalisation = Literal["symmetric", "before", "after", "none"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
WEIGHTS = ("gaussian_weight", "bilateral_weight")


def checked_width(name: str, value: Any) -> Width:
    """A float, a tuple of floats, or a tensor [] or [n] where it is learnt or lies on a GPU."""
    if isinstance(value, Tensor):
        if value.dim() > 1 or value.numel() == 0:
            raise ValueError(f"{name}: got shape {list(value.shape)}, must be [] or [n], n >= 1")
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{name}: got dtype {value.dtype}, must be numbers")
        if not are_seen(value):
            return value
        numbers = checked_width(name, value.tolist())
        return value if value.requires_grad else numbers
    if is_number(value):
        return checked_number(name, value, positive=True)
    if not isinstance(value, (list, tuple, np.ndarray)):
        got = type(value).__name__
        raise TypeError(f"{name}: got {got}, must be a number, a sequence of numbers or a tensor")
    if len(value) == 0:
        raise ValueError(f"{name}: got an empty sequence, must be a number or one an axis")
    return tuple(checked_number(name, entry, positive=True) for entry in value)


@dataclass(frozen=True)
class DenseCRFParams:
    """Widths and weights of the two kernels.

    A width is one number for all axes (channels), or one for each: a sequence, an array or a
    1-dimensional tensor, the axes in the order of the tensor's, (rows, columns) of a picture and
    (slices, rows, columns) of a volume. Where a width or a weight is learnt it is a tensor that
    requires a gradient. Numbers are kept as floats, sequences as tuples of them.

    Args:
        gaussian_sxy: standard deviation of the spatial kernel, in pixels.
        gaussian_weight: its weight, a number or a 0-dimensional tensor; or a matrix [K, K] that
            mixes the labels of what the kernel gathers, as those of Zheng et al. 2015.
        bilateral_sxy: standard deviation of the bilateral kernel in position, in pixels.
        bilateral_srgb: and in colour, in the units of the image: of RGB 0..255.
        bilateral_weight: its weight, as `gaussian_weight`.
        compatibility: μ [K, K], the energy of label k (row) beside label j (column) at weight 1;
            None for Potts, which charges 1 for different labels.
        normalisation: how kernels K are divided by their row sums D: "symmetric", D^-½ K D^-½;
            "before" the filter, K D^-1; "after" it, D^-1 K; or "none".

    Raises:
        TypeError, ValueError: a width is not positive and finite, a weight or the compatibility
            not finite, or the normalisation unknown. The values of tensors on CUDA, for which
            nothing waits, are not looked at.

    Example:
        >>> import deepcrf_ext as dc
        >>> dc.DenseCRFParams(bilateral_sxy=(4, 40, 40), bilateral_srgb=0.1).bilateral_sxy
        (4.0, 40.0, 40.0)
    """

    gaussian_sxy: Width = 3.0
    gaussian_weight: float | Tensor = 3.0
    bilateral_sxy: Width = 80.0
    bilateral_srgb: Width = 13.0
    bilateral_weight: float | Tensor = 10.0
    compatibility: Tensor | None = None
    normalisation: Normalisation = "symmetric"

    def __post_init__(self) -> None:
        for name in WIDTHS:
            object.__setattr__(self, name, checked_width(name, getattr(self, name)))
        for name in WEIGHTS:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                check_dense(name, value)
                if value.dim() != 0 and (value.dim() != 2 or value.shape[0] != value.shape[1]):
                    got = list(value.shape)
                    raise ValueError(f"{name}: got shape {got}, must be [] or [K, K]")
                check_floating(name, value)
                _check_finite(name, value)
            elif is_number(value):
                object.__setattr__(self, name, checked_number(name, value))
            else:
                raise TypeError(f"{name}: got {type(value).__name__}, must be a number or a tensor")
        if self.compatibility is not None:
            sizes: dict[str, int] = {}
            check_tensor("compatibility", self.compatibility, "K K", sizes)
            check_floating("compatibility", self.compatibility)
            _check_finite("compatibility", self.compatibility)
        if not (isinstance(self.normalisation, str) and self.normalisation in NORMALISATIONS):
            raise ValueError(
                f"normalisation: got {self.normalisation!r}, must be one of "
                f"{', '.join(NORMALISATIONS)}"
            )

    @classmethod
    def preset(cls, name: str) -> DenseCRFParams:
        """The parameters that others publish, for images in RGB 0..255:

        - "pydensecrf": those of its README (and of the code of Krähenbühl and Koltun), and this
          class's defaults;
        - "convcrf": the numbers of ConvCRF's default configuration, which are the same; there the
          kernels end at a window's border and are not normalised;
        - "deeplab": DeepLab v2 with ResNet-101 on VOC 2012.

        Raises:
            ValueError: there is no preset of this name.
        """
        if name not in tuple(PRESETS):
            raise ValueError(f"name: got {name!r}, must be one of {', '.join(PRESETS)}")
        return PRESETS[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return _dense_crf_params, tuple(getattr(self, field.name) for field in fields(self))


@loadable
def _dense_crf_params(*values: Any) -> DenseCRFParams:
    return DenseCRFParams(*values)


def _check_finite(name: str, values: Tensor) -> None:
    if are_seen(values) and not values.isfinite().all():
        raise ValueError(f"{name}: got NaN or infinity, must be finite")


PRESETS = {
    "pydensecrf": DenseCRFParams(),
    "convcrf": DenseCRFParams(3, 3, 80, 13, 10),
    "deeplab": DenseCRFParams(1, 3, 67, 3, 4),
}


def unary_from_probabilities(probabilities: Tensor, minimum: float = 1e-5) -> Tensor:
    """Energies -log p of probabilities, which are clipped to minimum..1.

    Args:
        probabilities: any shape, floating point.
        minimum: what smaller probabilities are raised to, in (0, 1].

    Returns:
        The energies, of the same shape and dtype.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> dc.unary_from_probabilities(torch.tensor([0.5, 0.1, 0.0]))
        tensor([ 0.6931,  2.3026, 11.5129])
    """
    check_dense("probabilities", probabilities)
    check_floating("probabilities", probabilities)
    minimum = checked_number("minimum", minimum)
    if not 0 < minimum <= 1:
        raise ValueError(f"minimum: got {minimum}, must lie in (0, 1]")
    wide = probabilities.to(accumulate_dtype(probabilities.dtype))  # float16 has no 1e-9
    return wide.clamp(minimum, 1).log().neg_().to(probabilities.dtype)


def unary_from_labels(
    labels: Tensor, num_labels: int, confidence: float, unsure: int | None = None
) -> Tensor:
    """Energies of a given labelling that is right with probability `confidence`.

    Args:
        labels: [B, *S], S of one to three axes, of any integer dtype, values 0..K-1 or `unsure`.
        num_labels: K, at least 2.
        confidence: the probability of the given label, in (0, 1); the others share the rest.
        unsure: the label of pixels that could be anything: all labels get the same energy there.

    Returns:
        float32 [B, K, *S].

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> labels = torch.tensor([[0, 1, 255]])
        >>> dc.unary_from_labels(labels, num_labels=2, confidence=0.9, unsure=255)
        tensor([[[0.1054, 2.3026, 0.6931],
                 [2.3026, 0.1054, 0.6931]]])
    """
    check_spatial("labels", labels, "B", {})
    check_device_type("labels", labels)
    check_integer("labels", labels)
    num_labels = checked_int("num_labels", num_labels, at_least=2)
    confidence = checked_number("confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, must lie in (0, 1)")
    if unsure is not None:
        unsure = checked_int("unsure", unsure)
    labels = labels.to(torch.int64)
    known = torch.ones_like(labels, dtype=torch.bool) if unsure is None else labels != unsure
    bad = known & ((labels < 0) | (labels >= num_labels))
    if bad.any():
        raise ValueError(
            f"labels: got {int(labels[bad][0])}, must be in 0..{num_labels - 1}"
            + ("" if unsure is None else f" or unsure = {unsure}")
        )
    other = -math.log((1 - confidence) / (num_labels - 1))
    shape = (labels.shape[0], num_labels, *labels.shape[1:])
    energies = torch.full(shape, other, device=labels.device)
    energies.scatter_(1, labels.where(known, 0)[:, None], -math.log(confidence))
    return energies.where(known[:, None], math.log(num_labels))
