"""Layer `DenseCRF`: sharp outlines for the logits of any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcrf_ext.ops._autocast import accumulate_dtype
from deepcrf_ext.ops._image_checks import warn_caller
from deepcrf_ext.ops._number_checks import (
    checked_int,
    checked_iterations,
    checked_number,
    is_number,
)
from deepcrf_ext.ops._tensor_checks import are_seen, check_device, check_floating, check_spatial
from deepcrf_ext.ops.dense_crf import dense_crf_log_marginals
from deepcrf_ext.ops.dense_crf_params import WEIGHTS, WIDTHS, DenseCRFParams, Width

LEARNABLE = ("weights", "compatibility", "widths")
_FORBIDDEN = -1e30
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


class DenseCRF(nn.Module):
    """Mean field of a dense CRF over the pixels of images or the voxels of volumes, as a layer.

    Unary energies are ``-logits``; every pixel is joined to every other by a Gaussian of position
    and one of position and colour (Krähenbühl and Koltun 2011; learnt end to end as in Zheng et
    al., "Conditional Random Fields as Recurrent Neural Networks", 2015). A fresh layer gives the
    logarithm of ``deepcrf_ext.dense_crf(-logits, image, params, iterations)``. The gradient reaches
    the logits, what is learnt, and an image that wants one.

    Training keeps 4 (3 i + 1) bytes a pixel and class for i iterations, 4 (7 i + 1) where widths or
    the image get a gradient, and works in some 30 more; without gradients a pixel and class take
    some 20 bytes. The lattices take 80 bytes a pixel (float32, CPU, photographs; more in
    `deepcrf_ext.dense_crf`). A step that learns the weights takes some 4 times the time of the
    forward pass without gradients, one that gives an RGB image a gradient some 12 times, one that
    learns widths some 20 times.

    It compiles and exports whole, with dynamic sizes of images; each batch size has a graph of its
    own, as the images of a batch are taken one after another.

    Args:
        num_classes: K, labels. Of a network with one logit l for the foreground they are two, and
            the logits ``torch.cat([torch.zeros_like(l), l], 1)``.
        iterations: mean-field updates. With 0 the result is ``log_softmax(logits)``.
        params: widths and weights at the start, as `deepcrf_ext.dense_crf` takes them; None for the
            defaults, which are for RGB images in 0..255. A weight that is a matrix [K, K], such as
            ``3 * torch.eye(K)``, is learnt as one where weights are.
        learn: which of them are learnt: "weights" (of the two kernels), "compatibility" (a matrix
            [K, K], at the start Potts: 1 off the diagonal, 0 on it), "widths" (positive, as factors
            ``exp(log_scale)`` of those at the start). () for a layer without parameters.
        mean: what a network's normalisation has subtracted from the image, in the image's own
            units: 255 times torchvision's numbers. One number, or one for each channel.
        std: what it has divided by. The layer multiplies by `std` and adds `mean`, so that the
            network's input can be handed in; a uint8 image is taken as it is.

    Attributes:
        gaussian_weight, bilateral_weight, compatibility: parameters, where they are learnt;
            matrices that are not are buffers, the rest None.
        log_scales: a parameter for each width by its name, where they are learnt, beside a buffer
            of that name, the width at the start.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> from torch.nn.functional import nll_loss
        >>> from deepcrf_ext import nn as crf
        >>> layer = crf.DenseCRF(num_classes=4)
        >>> logits = torch.randn(2, 4, 6, 8, requires_grad=True)  # of a network of stride 4
        >>> image = torch.randint(256, (2, 3, 24, 32), dtype=torch.uint8)
        >>> log_marginals = layer(logits, image)
        >>> log_marginals.shape
        torch.Size([2, 4, 24, 32])
        >>> nll_loss(log_marginals, torch.randint(4, (2, 24, 32)), ignore_index=255).backward()
    """

    mean: Tensor | None
    std: Tensor | None
    gaussian_weight: Tensor | None
    bilateral_weight: Tensor | None
    compatibility: Tensor | None

    def __init__(
        self,
        num_classes: int,
        iterations: int = 5,
        params: DenseCRFParams | None = None,
        learn: Sequence[str] = ("weights", "compatibility"),
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        params = DenseCRFParams() if params is None else params
        if not isinstance(params, DenseCRFParams):
            raise TypeError(f"params: got {type(params).__name__}, must be a DenseCRFParams")
        self.num_classes = checked_int("num_classes", num_classes, at_least=1)
        self.iterations = checked_iterations(iterations)
        self.learn = _checked_names(learn)
        self.params = _fixed(params)
        """The parameters at the start, without matrices of labels."""
        means, stds = _channel_values("mean", mean), _channel_values("std", std, positive=True)
        _warn_of_units([*(means or ()), *(stds or ())], self.params.bilateral_srgb)
        self._first: dict[str, Any] = {"mean": means, "std": stds}
        """The values at the start of parameters and buffers."""
        for name in WEIGHTS:
            matrix = self._matrix(f"a {name}", getattr(params, name))
            if "weights" in self.learn:
                self._first[name] = getattr(self.params, name) if matrix is None else matrix
                shape = () if matrix is None else matrix.shape
                setattr(self, name, nn.Parameter(torch.empty(shape)))
            else:
                self._first[name] = matrix
                self._register(name, _empty_as(matrix))
        self._first["compatibility"] = self._first_compatibility(params.compatibility)
        if "compatibility" in self.learn:
            self.compatibility = nn.Parameter(torch.empty(self.num_classes, self.num_classes))
        else:
            self._register("compatibility", _empty_as(self._first["compatibility"]))
        self.log_scales = nn.ParameterDict()
        if "widths" in self.learn:
            for name in WIDTHS:
                self._first[name] = getattr(self.params, name)
                self.register_buffer(name, _empty_as(self._first[name]))
                self.log_scales[name] = nn.Parameter(torch.empty_like(getattr(self, name)))
        self._register("mean", _empty_as(means))
        self._register("std", _empty_as(stds))
        self.reset_parameters()

    def _register(self, name: str, buffer: Tensor | None) -> None:
        """A buffer; what there is none of is none: torch 2.7 exports no buffer that is None."""
        if buffer is None:
            setattr(self, name, None)
        else:
            self.register_buffer(name, buffer)

    def reset_parameters(self) -> None:
        """Everything goes back to what the layer was made with; after `to_empty`, buffers too."""
        with torch.no_grad():
            for name, first in self._first.items():
                own = getattr(self, name)
                if own is not None:
                    own.copy_(torch.as_tensor(first, device=own.device))
            for scale in self.log_scales.values():
                scale.zero_()

    def _first_compatibility(self, given: Tensor | None) -> Tensor | None:
        """That of `params`, or Potts where it is learnt."""
        if given is None:
            identity = torch.eye(self.num_classes, device="cpu")
            return 1 - identity if "compatibility" in self.learn else None
        return self._matrix("a compatibility", given)

    def _matrix(self, what: str, given: Any) -> Tensor | None:
        """A copy of a matrix of the labels of `params`, or None where it is a single number."""
        if not isinstance(given, Tensor) or given.dim() == 0:
            return None
        if given.shape[0] != self.num_classes:
            raise ValueError(
                f"params: got {what} of {given.shape[0]} labels, must be of "
                f"num_classes = {self.num_classes}"
            )
        return given.detach().cpu().clone()

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Log-marginals of mean field.

        Args:
            logits: [B, K, *S'], floating point, S' of one to three axes; energies are their
                negatives, and -inf forbids a label. Where S' is not S they are resized to S, (bi-,
                tri-)linearly.
            image: [B, C, *S], uint8 or floating point. With `mean` or `std` a floating-point image
                is the network's normalised one.

        Returns:
            [B, K, *S], log-probabilities over the K labels, finite also where a marginal is next to
            0; float64 for float64 logits, else float32, also under `torch.autocast`.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        sizes = {"K": self.num_classes}
        check_spatial("logits", logits, "B K", sizes)
        check_floating("logits", logits)
        check_spatial("image", image, "B C", {"B": sizes["B"]})
        if image.dim() != logits.dim():
            raise ValueError(
                f"image: got {image.dim() - 2} spatial axes, must be {logits.dim() - 2} as logits"
            )
        check_device("image", image.device, logits.device, "logits")
        logits = logits.to(accumulate_dtype(logits.dtype))
        if logits.shape[2:] != image.shape[2:]:
            mode = _INTERPOLATION[logits.dim() - 2]
            finite = logits.clamp(min=_FORBIDDEN)  # 0 times -inf would be NaN
            logits = functional.interpolate(finite, image.shape[2:], mode=mode, align_corners=False)
        image = self._in_own_units(image)
        if are_seen(logits):
            _check_logits(logits)
        return dense_crf_log_marginals(-logits, image, self.current_params(), self.iterations)

    def current_params(self) -> DenseCRFParams:
        """What `deepcrf_ext.dense_crf` takes to compute the same, tensors where they are learnt."""
        changes: dict[str, Any] = {"compatibility": self.compatibility}
        for name in WEIGHTS:
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        for name, scale in self.log_scales.items():
            changes[name] = getattr(self, name) * scale.exp()
        return replace(self.params, **changes)

    def extra_repr(self) -> str:
        matrices = [name for name, first in self._first.items() if isinstance(first, Tensor)]
        numbers = [
            f"{name}={'matrix' if name in matrices else getattr(self.params, name)}"
            for name in (*WIDTHS, *WEIGHTS)
        ]
        return ", ".join(
            [
                f"num_classes={self.num_classes}",
                f"iterations={self.iterations}",
                f"learn={self.learn}",
                *numbers,
            ]
        )

    def _in_own_units(self, image: Tensor) -> Tensor:
        """The image before the network's normalisation."""
        if (self.mean is None and self.std is None) or not image.is_floating_point():
            return image
        image = image.to(accumulate_dtype(image.dtype))
        for name, values in (("std", self.std), ("mean", self.mean)):
            if values is None:
                continue
            if len(values) not in (1, image.shape[1]):
                raise ValueError(
                    f"{name}: got {len(values)} numbers, must be one or {image.shape[1]}, one for "
                    "each channel of the image"
                )
            each = values.to(image.device).reshape(-1, *[1] * (image.dim() - 2))
            image = image * each if name == "std" else image + each
        return image


def _check_logits(logits: Tensor) -> None:
    if logits.sum().isfinite():  # which is quick, and says that all are
        return
    if logits.isnan().any() or logits.isposinf().any() or logits.isneginf().all(1).any():
        raise ValueError(
            "logits: got NaN, +inf, or no finite one at a position, must hold at least one finite "
            "one a position"
        )


def _empty_as(first: Any) -> Tensor | None:
    """Room for values at the start, on torch's default device."""
    if first is None:
        return None
    values = torch.as_tensor(first, device="cpu")
    return torch.empty(values.shape, dtype=values.dtype)


def _warn_of_units(numbers: Sequence[float], srgb: Width) -> None:
    narrowest = min(srgb) if isinstance(srgb, Sequence) else srgb
    if numbers and narrowest >= 1 and min(numbers) >= 0 and max(numbers) <= 1:
        warn_caller(
            f"mean, std: got numbers within 0..1, while bilateral_srgb = {narrowest} is in the "
            "units of an image in 0..255; give 255 times as much, or widths in their units"
        )


def _checked_names(learn: Any) -> tuple[str, ...]:
    if isinstance(learn, str) or not isinstance(learn, Sequence | set | frozenset):
        raise TypeError(f"learn: got {type(learn).__name__}, must be a sequence of names")
    for name in learn:
        if name not in LEARNABLE:
            raise ValueError(f"learn: got {name!r}, must be some of {', '.join(LEARNABLE)}")
    return tuple(name for name in LEARNABLE if name in learn)


def _fixed(params: DenseCRFParams) -> DenseCRFParams:
    """The parameters as numbers, without matrices of labels: 1 in the place of weights."""
    tensors = {name: getattr(params, name) for name in (*WIDTHS, *WEIGHTS)}
    numbers: dict[str, Any] = {
        name: 1.0 if value.dim() == 2 else value.detach().tolist()
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }
    return replace(params, compatibility=None, **numbers)


def _channel_values(name: str, value: Any, positive: bool = False) -> list[float] | None:
    """One number for all channels, or one for each."""
    if value is None:
        return None
    if isinstance(value, (Tensor, np.ndarray)):
        numbers = value.reshape(-1).tolist()
        if value.ndim == 0:
            value = numbers[0]
        elif max(value.shape) == len(numbers):  # also of [C, 1, 1] and [1, C, 1, 1]
            value = numbers
        else:
            value = value.tolist()
    if is_number(value):
        return [checked_number(name, value, positive)]
    if not isinstance(value, (list, tuple)) or len(value) == 0:
        raise TypeError(f"{name}: got {value!r}, must be a number or one for each channel")
    return [checked_number(name, entry, positive) for entry in value]
