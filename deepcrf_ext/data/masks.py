"""Masks of any kind of file, as the codes that label maps translate."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ImageFile, ImageOps

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data.arrays import is_array, label_plane, read_array
from deepcrf_ext.data.images import (
    deep_channels,
    has_values,
    is_deep,
    open_picture,
    orientation,
    read_values,
)
from deepcrf_ext.data.label_maps import value_code
from deepcrf_ext.errors import InputError

PaletteMasks = Literal["indices", "colours"]


def read_codes(path: Path, palette_masks: PaletteMasks = "indices") -> np.ndarray:
    """The code of every pixel of a mask (see `label_maps`), int32 [H, W].

    Grey masks of 1 to 16 bits give their stored values, masks with a palette their indices or the
    colours of the palette, all others their colours; an alpha channel is dropped. Of an animation
    the first frame is taken. An EXIF orientation is applied, as to images.

    An array (.npy, .npz) is a plane of integers, of which -1 is 255, as in labelme's exports.

    Raises InputError when the file cannot be decoded or is a floating-point image.
    """
    if is_array(path):
        array = read_array(path)
        plane = label_plane(array)
        if plane is None:
            raise InputError(
                f"{path}: {array.dtype} of shape {list(array.shape)}; must be integers [H, W]"
            )
        return _encode_values(np.where(plane == -1, IGNORE_INDEX, plane), path)
    with open_picture(path) as picture:
        if picture.mode == "F":
            raise InputError(f"{path}: a floating-point mask; must hold integers or colours")
        if has_values(picture) and not (picture.mode == "P" and palette_masks == "colours"):
            return _encode_values(read_values(picture), path)
        return _read_channels(picture, path)


def _read_channels(picture: ImageFile.ImageFile, path: Path) -> np.ndarray:
    """The codes of a picture of several channels, or of the colours of its palette."""
    if is_deep(picture):
        return _encode_deep(deep_channels(picture), path)
    if picture.mode == "PA":
        raise InputError(f"{path}: a palette with alpha; must be saved without one of both")
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in ("LA", "La"):
        return _encode_values(np.asarray(picture)[..., 0], path)
    return _pack(np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB")))


def read_palette(path: Path) -> dict[int, int]:
    """The colours, as codes, of the indices that a mask with a palette holds; none of others."""
    if is_array(path):
        return {}
    with open_picture(path) as picture:
        if picture.mode != "P":
            return {}
        values = read_values(picture)
        codes = _pack(np.array(picture.getpalette(), np.uint8).reshape(1, -1, 3))[0].tolist()
        return {index: codes[index] for index in np.unique(values).tolist() if index < len(codes)}


def is_turned(path: Path) -> bool:
    """Whether the EXIF orientation of a mask turns it."""
    if is_array(path):
        return False
    with open_picture(path) as picture:
        return orientation(picture) != 1


def _encode_deep(colours: np.ndarray | None, path: Path) -> np.ndarray:
    """uint16 [H, W, 3] to codes: values where all are grey, else colours of 8 bits as 16."""
    if colours is not None:
        if (colours % 257 == 0).all():
            return _pack((colours // 257).astype(np.uint8))
        if (colours == colours[..., :1]).all():
            return _encode_values(colours[..., 0], path)
    raise InputError(f"{path}: colours of 16 bits; must have 8 bits each, or one channel of values")


def _pack(colours: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to codes."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), 2, 0)
    return (red << 16) | (green << 8) | blue


def _encode_values(values: np.ndarray, path: Path) -> np.ndarray:
    """Integers [H, W] to codes."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise InputError(f"{path}: holds values {lowest}..{highest}; must be 0..65535")
    values = values.astype(np.int32)
    return np.where(values <= 255, values * value_code(1), value_code(256) - 256 + values)
