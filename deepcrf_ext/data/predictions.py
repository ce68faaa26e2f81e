"""What any model says of an image, from files: label maps, probabilities, grey-level saliency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from deepcrf_ext.data.arrays import is_array, is_label_map, read_array
from deepcrf_ext.data.images import open_picture, read_values, voc_palette
from deepcrf_ext.data.label_maps import LabelMap, code_values, is_grey
from deepcrf_ext.data.masks import read_codes
from deepcrf_ext.errors import InputError

Layout = Literal["auto", "khw", "hwk"]


@dataclass(frozen=True)
class LabelCoding:
    """How label maps are stored.

    mode: Pillow's mode of the file, "1", "L" or "P" (deeper greys and arrays are one of these).
    palette: the colours of a palette, RGB one after another; None in the other modes.
    codes: the code (see `label_maps`) of each class; None where pixels hold the indices.
    """

    mode: str
    palette: tuple[int, ...] | None = None
    codes: tuple[int, ...] | None = None

    def _colours(self) -> np.ndarray | None:
        """The colour of each class, uint8 [K, 3]; None where pixels hold values."""
        if self.codes is None or all(map(is_grey, self.codes)):
            return None
        codes = np.array(self.codes, np.int32)
        return np.stack([codes >> 16, codes >> 8, codes], 1).astype(np.uint8)

    def visible_palette(self) -> np.ndarray:
        """A colour for each class, uint8 [256, 3] RGB: those of the map, VOC's where it has none.

        Values are shown in VOC's too.
        """
        own, palette = self._colours(), voc_palette(256)
        if self.codes is None and self.palette is not None:
            own = np.array(self.palette, np.uint8).reshape(-1, 3)
        if own is not None:
            palette[: len(own)] = own
        return palette

    def write(self, file: BinaryIO, labels: np.ndarray) -> None:
        """Write labels, uint8 [H, W] of class indices, as a PNG."""
        colours = self._colours()
        if colours is not None:
            Image.fromarray(colours[labels]).save(file, format="PNG")
            return
        values = labels
        if self.codes is not None:
            values = code_values(np.array(self.codes, np.int32))[labels]
        values = values.astype(
            bool if self.mode == "1" else np.uint8 if values.max() <= 255 else np.uint16
        )
        picture = Image.fromarray(values)
        if self.palette is not None and values.dtype == np.uint8:
            picture.putpalette(self.palette)
        picture.save(file, format="PNG")

    def read(self, path: Path) -> np.ndarray:
        """The class indices, uint8 [H, W], that `write` wrote."""
        codes = read_codes(path)
        if self.codes is None:
            return code_values(codes).astype(np.uint8)
        return LabelMap(
            {code: index for index, code in enumerate(self.codes)}, "is no class"
        ).apply(codes, path)


def read_label_map(path: Path) -> tuple[np.ndarray, LabelCoding]:
    """The codes (see `label_maps`) of a label map, int32 [H, W], and how it is stored.

    Raises InputError when it cannot be read, as `read_codes`.
    """
    codes = read_codes(path)
    if is_array(path):
        return codes, LabelCoding("P", tuple(voc_palette(256).flatten().tolist()))
    with open_picture(path) as picture:
        if picture.mode == "P":
            return codes, LabelCoding("P", tuple(picture.getpalette() or ()))
        return codes, LabelCoding("1" if picture.mode == "1" else "L")


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
    array = read_array(path)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {array.dtype}; must hold numbers")
    if array.size == 0:
        raise InputError(f"{path}: an array of shape {list(array.shape)}; must not be empty")
    values = array.astype(np.float32)
    if not logits and array.dtype.kind in "iu" and values.max() > 1:
        if is_label_map(array):
            raise InputError(
                f"{path}: holds {array.dtype} {array.min()}..{array.max()}, which look like "
                "labels; probabilities are floating-point numbers, or uint8 in fractions of 255"
            )
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


def _softmax(path: Path, logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise InputError(f"{path}: holds NaN or infinity; must hold logits")
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


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
