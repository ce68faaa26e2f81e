"""The parameters of a dense CRF, its features, and unary energies from predictions.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
2011: `E = Σ_p U_p(y_p) + Σ_(p<q) μ(y_p, y_q) k(p, q)` over all pairs of pixels, `k` a sum of a
Gaussian of the positions and a (bilateral) Gaussian of positions and colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops._tensor_checks import check_floating, check_tensor


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class DenseCRFParams:
    """Widths and weights of the two kernels.

    Args:
        gaussian_sxy: standard deviation of the spatial kernel, in pixels.
        gaussian_weight: its weight; a 0-dimensional tensor where it is learnt.
        bilateral_sxy: standard deviation of the bilateral kernel in position, in pixels.
        bilateral_srgb: and in colour, in units of RGB 0..255.
        bilateral_weight: its weight, as `gaussian_weight`.
        compatibility: μ [K, K], the energy of label k (row) beside label j (column) at weight 1;
            None for Potts, which charges 1 for different labels.

    Raises:
        TypeError, ValueError: a width is not positive and finite, or a weight not finite.
    """

    gaussian_sxy: float = 3.0
    gaussian_weight: float | Tensor = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_weight: float | Tensor = 10.0
    compatibility: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            value = getattr(self, name)
            if not _is_number(value):
                raise TypeError(f"{name}: got {type(value).__name__}, must be a number")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: got {value}, must be positive and finite")
        for name in ("gaussian_weight", "bilateral_weight"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                check_tensor(name, value, "", {})
                check_floating(name, value)
            elif not _is_number(value):
                raise TypeError(f"{name}: got {type(value).__name__}, must be a number or a tensor")
            elif not math.isfinite(value):
                raise ValueError(f"{name}: got {value}, must be finite")
        if self.compatibility is not None:
            sizes: dict[str, int] = {}
            check_tensor("compatibility", self.compatibility, "K K", sizes)
            check_floating("compatibility", self.compatibility)

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
        if name not in PRESETS:
            raise ValueError(f"name: got {name!r}, must be one of {', '.join(PRESETS)}")
        return PRESETS[name]


PRESETS = {
    "pydensecrf": DenseCRFParams(),
    "convcrf": DenseCRFParams(3, 3, 80, 13, 10),
    "deeplab": DenseCRFParams(1, 3, 67, 3, 4),
}


def gaussian_features(height: int, width: int, sxy: float, device: torch.device) -> Tensor:
    """Pixel positions in units of `sxy`, x before y: float32 [2, H * W]."""
    columns, rows = (
        torch.arange(size, dtype=torch.float32, device=device) / _divisor(sxy, device)
        for size in (width, height)
    )
    features = torch.empty((2, height, width), device=device)
    features[0] = columns
    features[1] = rows[:, None]
    return features.flatten(1)


def bilateral_features(image: Tensor, sxy: float, srgb: float) -> Tensor:
    """Positions over `sxy` and colours over `srgb`: [3, H, W] -> float32 [5, H * W]."""
    height, width = image.shape[1:]
    colours = image.to(torch.float32).flatten(1) / _divisor(srgb, image.device)
    return torch.cat([gaussian_features(height, width, sxy, image.device), colours])


def _divisor(width: float, device: torch.device) -> Tensor:
    # Dividing by a number may multiply by its rounded reciprocal; by a tensor it does not.
    return torch.full((1,), width, dtype=torch.float32, device=device)


def unary_from_probabilities(probabilities: Tensor, minimum: float = 1e-5) -> Tensor:
    """Energies -log max(p, minimum).

    Args:
        probabilities: any shape, floating point.
        minimum: what smaller probabilities are raised to, in (0, 1].

    Returns:
        The energies, of the same shape and dtype.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    if not isinstance(probabilities, Tensor):
        got = type(probabilities).__name__
        raise TypeError(f"probabilities: got {got}, must be a torch.Tensor")
    check_floating("probabilities", probabilities)
    if not 0 < minimum <= 1:
        raise ValueError(f"minimum: got {minimum}, must lie in (0, 1]")
    return probabilities.clamp(minimum, 1).log().neg_()


def unary_from_labels(
    labels: Tensor, num_labels: int, confidence: float, unsure: int | None = None
) -> Tensor:
    """Energies of a given labelling that is right with probability `confidence`.

    Args:
        labels: [B, H, W] of any integer dtype, values 0..K-1 or `unsure`.
        num_labels: K, at least 2.
        confidence: the probability of the given label, in (0, 1); the others share the rest.
        unsure: the label of pixels that could be anything: all labels get the same energy there.

    Returns:
        float32 [B, K, H, W].

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_tensor("labels", labels, "B H W", {})
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: got dtype {labels.dtype}, must be an integer dtype")
    if num_labels < 2:
        raise ValueError(f"num_labels: got {num_labels}, must be at least 2")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, must lie in (0, 1)")
    labels = labels.to(torch.int64)
    known = torch.ones_like(labels, dtype=torch.bool) if unsure is None else labels != unsure
    bad = known & ((labels < 0) | (labels >= num_labels))
    if bad.any():
        raise ValueError(
            f"labels: got {int(labels[bad][0])}, must be in 0..{num_labels - 1}"
            + ("" if unsure is None else f" or unsure = {unsure}")
        )
    batch, height, width = labels.shape
    other = -math.log((1 - confidence) / (num_labels - 1))
    energies = torch.full((batch, num_labels, height, width), other, device=labels.device)
    energies.scatter_(1, labels.where(known, 0)[:, None], -math.log(confidence))
    return energies.where(known[:, None], math.log(num_labels))
