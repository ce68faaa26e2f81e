"""What any model says of an image, from files: label maps, probabilities, grey-level saliency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from deepcrf_ext.data.images import open_picture, read_indices, read_values
from deepcrf_ext.errors import InputError

Layout = Literal["auto", "khw", "hwk"]

ARRAY_SUFFIXES = (".npy", ".npz")
_NAMES = ("probabilities", "marginals", "softmax", "logits", "arr_0")
"""Arrays of an .npz that are taken where it holds several."""


@dataclass(frozen=True)
class LabelPicture:
    """A label map and how it was stored.

    labels: uint8 [H, W]. mode: Pillow's mode of the file, "1", "L" or "P" (deeper greys are "L").
    palette: the colours of a palette, RGB one after another; None in the other modes.
    """

    labels: np.ndarray
    mode: str
    palette: tuple[int, ...] | None

    def write(self, file: Any) -> None:
        """Write it as a PNG."""
        values = self.labels.astype(bool) if self.mode == "1" else self.labels
        picture = Image.fromarray(values)
        if self.palette is not None:
            picture.putpalette(self.palette)
        picture.save(file, format="PNG")


def read_label_picture(path: Path) -> LabelPicture:
    """Read a label map, a picture with one channel of class indices or a palette.

    Raises InputError when it cannot be decoded, has colours, or holds values above 255.
    """
    with open_picture(path) as picture:
        labels = read_indices(picture, path)
        mode = picture.mode if picture.mode in ("1", "P") else "L"
        palette = tuple(picture.getpalette() or ()) if mode == "P" else None
        return LabelPicture(labels, mode, palette)


def read_saliency(path: Path) -> np.ndarray:
    """Read a grey-level picture as the probability of the foreground, float32 [H, W] in 0..1.

    Black is 0 and white 1, at any depth; of colours the luminance is taken.
    """
    with open_picture(path) as picture:
        if picture.mode == "F":
            raise InputError(f"{path}: floating-point image; must have 1 to 16 bits a channel")
        if picture.mode.startswith("I"):
            return (read_values(picture) / 65535).clip(0, 1).astype(np.float32)
        return np.asarray(picture.convert("L"), np.float32) / 255


def read_probabilities(
    path: Path, size: tuple[int, int], layout: Layout = "auto", *, logits: bool = False
) -> np.ndarray:
    """Read an array of probabilities as float32 [K, h, w].

    An .npz holds one array, or calls it "probabilities", "marginals", "softmax" or "logits". It is
    [K, h, w], [h, w, K], one of these with an axis of 1 before, or [h, w], the probability of the
    second of two classes. Integers up to 255 stand for fractions of 255.

    Args:
        path: the file.
        size: (H, W) of the image, which tells which axis is that of the classes where it is not
            clear from sums of 1.
        layout: "khw" and "hwk" say which.
        logits: whether the array holds logits, of which the softmax is taken ([h, w]: the sigmoid).

    Raises:
        InputError: the file cannot be read, or its array holds no such thing.
    """
    array = _load(path)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {array.dtype}; must hold numbers")
    if array.size == 0:
        raise InputError(f"{path}: an array of shape {list(array.shape)}; must not be empty")
    values = array.astype(np.float32)
    if not logits and array.dtype.kind in "iu" and values.max() > 1:
        _refuse_labels(path, array.squeeze())
        values /= 255
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 3 and values.shape[0] == 1 and values.shape[:2] != size:
        values = values[0]
    elif values.ndim == 3 and values.shape[2] == 1 and values.shape[1:] != size:
        values = values[..., 0]
    is_flat = size[0] * size[1] in values.shape and values.shape != size  # of [K, h · w]
    if values.ndim == 2 and not is_flat:
        values = np.stack([np.zeros_like(values) if logits else 1 - values, values])
    elif values.ndim == 3:
        chosen = _layout(path, values, size, logits) if layout == "auto" else layout
        values = np.ascontiguousarray(np.moveaxis(values, 2, 0)) if chosen == "hwk" else values
    if values.ndim != 3:
        raise InputError(
            f"{path}: an array of shape {list(array.shape)}; must be [K, h, w], [h, w, K] or [h, w]"
        )
    if len(values) > 256:
        raise InputError(f"{path}: holds {len(values)} classes; must be at most 256")
    if values.shape[:0:-1] == size != values.shape[1:]:
        raise InputError(
            f"{path}: is {values.shape[2]}x{values.shape[1]} pixels, but its image "
            f"{size[1]}x{size[0]}; transposed, or not turned as its EXIF orientation says?"
        )
    return _softmax(path, values) if logits else _checked(path, values)


def _refuse_labels(path: Path, plane: np.ndarray) -> None:
    """Raises InputError for one plane of integers that are no fractions of 255, but labels."""
    few = plane.max() < 128 and len(np.unique(plane)) <= 64
    if plane.ndim == 2 and (few or plane.dtype != np.uint8):
        raise InputError(
            f"{path}: holds {plane.dtype} {plane.min()}..{plane.max()}, which look like labels; "
            "label maps are pictures, such as PNG, and probabilities floating-point numbers, or "
            "uint8 in fractions of 255"
        )


def _softmax(path: Path, logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise InputError(f"{path}: holds NaN or infinity; must hold logits")
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def _load(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = loaded.files
            known = [name for name in _NAMES if name in names]
            if not (known or len(names) == 1):
                raise InputError(
                    f"{path}: holds the arrays {', '.join(names) or 'none'}; must hold one, or "
                    f"{', '.join(_NAMES[:4])}"
                )
            array: np.ndarray = loaded[known[0] if known else names[0]]
            return array
    except InputError:
        raise
    except Exception as error:  # NumPy raises errors of many kinds on damaged files
        raise InputError(f"{path}: cannot be read as an array ({error})") from error


def _layout(path: Path, values: np.ndarray, size: tuple[int, int], logits: bool) -> Layout:
    """Which end the axis of the classes lies at: where sums are 1, else where the size fits."""
    sums: dict[Layout, float] = {
        layout: float(np.abs(values.sum(axis) - 1).max()) for layout, axis in _AXES.items()
    }
    fitting = [layout for layout, error in sums.items() if error < _SUM and not logits]
    if len(fitting) != 1:
        shapes: dict[Layout, tuple[int, ...]] = {"khw": values.shape[1:], "hwk": values.shape[:2]}
        candidates = fitting or list(shapes)
        fitting = [layout for layout in candidates if shapes[layout] == size]
    if len(fitting) != 1:
        raise InputError(
            f"{path}: an array of shape {list(values.shape)}: which axis is that of the classes? "
            "--layout khw or hwk says it"
        )
    return fitting[0]


_AXES: dict[Layout, int] = {"khw": 0, "hwk": 2}
_SUM = 0.02  # how far from 1 sums of probabilities may be, for rounded ones


def _checked(path: Path, probabilities: np.ndarray) -> np.ndarray:
    if not (probabilities.min() >= -1e-3 and probabilities.max() <= 1 + 1e-3):  # False of NaN
        raise InputError(
            f"{path}: holds values {probabilities.min():.4g}..{probabilities.max():.4g}; must be "
            "probabilities within 0..1 (--kind logits takes logits)"
        )
    error = float(np.abs(probabilities.sum(0) - 1).max())
    if error > _SUM * 3:
        raise InputError(
            f"{path}: probabilities of a pixel sum to 1 ± {error:.3g}; must sum to 1 over the "
            "classes (--layout says which axis theirs is)"
        )
    return probabilities
