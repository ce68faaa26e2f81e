"""The functions of pydensecrf.utils: unary energies and features of pairwise energies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from deepcrf_ext.pydensecrf._arguments import Array, as_integer, as_number, as_tensor, as_widths


def unary_from_labels(
    labels: ArrayLike, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> Array:
    """Energies of a labelling that is right with probability `gt_prob`, float32 [n_labels, N].

    With `zero_unsure`, 0 means "could be anything" and label k is written k + 1; `n_labels` does
    not count the 0.

    Raises:
        TypeError, ValueError: a label is no whole number or out of range, `gt_prob` is not within
            (0, 1), or `n_labels` is below 1.
    """
    count, certainty = as_integer("n_labels", n_labels, 1), as_number("gt_prob", gt_prob)
    if not 0 < certainty < 1:
        raise ValueError(f"gt_prob: got {gt_prob}, must lie in (0, 1)")
    shift = int(bool(zero_unsure))
    flat = _whole_numbers(labels)
    if flat.size and not (flat.min() >= 0 and flat.max() < count + shift):
        raise ValueError(
            f"labels: got {flat.min()}..{flat.max()}, must be in 0..{count - 1 + shift}"
        )
    other = (1 - certainty) / max(count - 1, 1)
    energies = np.full((count, flat.size), -np.log(other), np.float32)
    unsure = (flat == 0) if shift else np.zeros(flat.size, bool)
    energies[np.where(unsure, 0, flat - shift), np.arange(flat.size)] = -np.log(certainty)
    energies[:, unsure] = np.log(count)
    return energies


def _whole_numbers(labels: Any) -> np.ndarray:
    """Labels of any shape, as int64 [N]."""
    array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).reshape(-1)
    if array.dtype.kind == "f":
        if not (array == np.trunc(array)).all():  # False of NaN too
            broken = array[array != np.trunc(array)][0]
            raise TypeError(f"labels: got {broken}, must be whole numbers")
    elif array.dtype.kind not in "iub":
        raise TypeError(f"labels: got dtype {array.dtype}, must be whole numbers")
    return array.astype(np.int64)


def compute_unary(labels: ArrayLike, M: int, GT_PROB: float = 0.5) -> Array:
    """The old name of `unary_from_labels`."""
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(
    sm: ArrayLike | Tensor, scale: float | None = None, clip: float | None = 1e-5
) -> Any:
    """Energies of probabilities [K, ...], float32 [K, N].

    `scale` mixes them with uniform ones, to at most about `scale`; `clip` raises smaller ones.
    A NumPy array; a tensor for a tensor that requires a gradient.
    """
    probabilities = _probabilities(sm)
    if probabilities.ndim == 0 or 0 in probabilities.shape:
        got = list(probabilities.shape)
        raise ValueError(f"sm: got shape {got}, must be [K, ...] and not empty")
    if scale is not None:
        certainty = as_number("scale", scale)
        if not 0 < certainty <= 1:
            raise ValueError(f"scale: got {scale}, must lie in (0, 1]")
        probabilities = certainty * probabilities + (1 - certainty) / len(probabilities)
    if clip is not None:
        least = as_number("clip", clip)
        if np.isnan(least):
            raise ValueError("clip: got NaN, must be a number or None")
        probabilities = probabilities.clip(least, 1.0)
    if isinstance(probabilities, Tensor):
        return -probabilities.log().flatten(1).float()
    with np.errstate(divide="ignore"):  # of probabilities of 0 where nothing is clipped
        energies = -np.log(probabilities)
    return energies.reshape(len(energies), -1).astype(np.float32)


def _probabilities(sm: Any) -> Any:
    """As they are, of at least float32; tensors without a gradient as arrays."""
    if isinstance(sm, Tensor):
        if sm.is_complex():
            raise TypeError(f"sm: got dtype {sm.dtype}, must be numbers")
        wide = sm if sm.dtype.itemsize > 2 and sm.is_floating_point() else sm.float()
        if sm.requires_grad:
            return wide
        return wide.cpu().numpy()
    array = np.asarray(sm)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"sm: got dtype {array.dtype}, must be numbers")
    return array.astype(np.result_type(array, np.float32), copy=False)


def softmax_to_unary(sm: ArrayLike | Tensor, GT_PROB: float = 1) -> Any:
    """The old name of `unary_from_softmax`, with `GT_PROB` as its scale and nothing clipped."""
    return unary_from_softmax(sm, GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: float | Sequence[float], shape: Iterable[int]) -> Array:
    """Features of positions in a grid of any number of axes: float32 [len(shape), N].

    `sdims` holds the standard deviation along each axis, or one for all.
    """
    sizes = _sizes(shape)
    if _count(sdims, len(sizes)) != len(sizes):
        raise ValueError(f"sdims: got {sdims}, must be a number or {len(sizes)} numbers")
    return _scaled("sdims", _positions(sizes), sdims).reshape(len(sizes), -1)


def create_pairwise_bilateral(
    sdims: float | Iterable[float],
    schan: float | Iterable[float],
    img: ArrayLike,
    chdim: int = -1,
) -> Array:
    """Features of positions and channels of an image of any number of axes: float32 [d, N].

    Axis `chdim` of the image holds its channels; -1 says that it has none, and every axis is one of
    space. `sdims` and `schan` hold the standard deviations along the axes and of the channels. Of
    fewer than those there are, they are of the first ones, and the others stay as they are; one
    number is of all.
    """
    image = as_tensor("img", img, (-1,) * np.ndim(img)).numpy()
    if image.ndim == 0:
        raise ValueError("img: got a number, must have at least one axis")
    axis = as_integer("chdim", chdim, -image.ndim)
    if axis >= image.ndim:
        raise ValueError(f"chdim: got {chdim}, must be -1 or an axis of {image.ndim}")
    channels = image[None] if axis == -1 else np.moveaxis(image, axis, 0)
    features = np.concatenate(
        [
            _scaled("sdims", _positions(channels.shape[1:]), sdims),
            _scaled("schan", channels, schan),
        ]
    )
    return features.reshape(len(features), -1)


def _sizes(shape: Any) -> list[int]:
    try:
        sizes = list(shape)
    except TypeError:
        sizes = []
    if not sizes:
        raise TypeError(f"shape: got {shape!r}, must be the sizes of the axes")
    return [as_integer("shape", size, 1) for size in sizes]


def _positions(sizes: Sequence[int]) -> Array:
    """The position along each axis, float32 [axes, *sizes]."""
    axes = [np.arange(size, dtype=np.float32) for size in sizes]
    return np.stack(np.meshgrid(*axes, indexing="ij")) if axes else np.empty((0,), np.float32)


def _count(widths: Any, all_: int) -> int:
    """How many planes widths are of: a number is of all."""
    return len(widths) if np.ndim(widths) else all_


def _scaled(name: str, planes: Array, widths: Any) -> Array:
    """The planes over their widths: one for all, or of the first ones."""
    if isinstance(widths, Iterable) and not hasattr(widths, "__getitem__"):  # such as a generator
        widths = list(widths)
    count = _count(widths, len(planes))
    if count > len(planes):
        raise ValueError(f"{name}: got {widths}, must be at most {len(planes)} numbers")
    divisors = as_widths(name, widths, count).numpy()
    scaled = planes.copy()
    scaled[:count] /= divisors.reshape(-1, *[1] * (planes.ndim - 1))
    return scaled
