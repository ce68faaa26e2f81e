"""Arrays of NumPy in files: .npy, and .npz of one array, or of several of which one is known."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepcrf_ext.errors import InputError, reason

ARRAY_SUFFIXES = (".npy", ".npz")
_NAMES = ("probabilities", "marginals", "softmax", "logits", "labels", "arr_0")
"""Arrays of an .npz that are taken where it holds several."""


def is_array(path: Path) -> bool:
    """Whether a file holds an array, by its name."""
    return path.suffix.lower() in ARRAY_SUFFIXES


def read_array(path: Path) -> np.ndarray:
    """The array of a file. Raises InputError when it cannot be read, or holds several others."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            array: np.ndarray = loaded[_choose(loaded.files, path)]
            return array
    except InputError:
        raise
    except Exception as error:  # NumPy raises errors of many kinds on damaged files
        raise InputError(f"{path}: cannot be read as an array ({reason(error)})") from error


def _choose(names: Sequence[str], path: Path) -> str:
    known = [name for name in _NAMES if name in names]
    if not (known or len(names) == 1):
        raise InputError(
            f"{path}: holds the arrays {', '.join(names) or 'none'}; must hold one, or "
            f"{', '.join(_NAMES[:-1])}"
        )
    return known[0] if known else names[0]


def label_plane(array: np.ndarray) -> np.ndarray | None:
    """The plane [H, W] of an array that could be a label map: integers or booleans [H, W], or with
    an axis of 1 at either end. None for others."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    return array if array.ndim == 2 and array.size and array.dtype.kind in "iub" else None


def is_label_map(array: np.ndarray) -> bool:
    """Whether an array is a label map: a plane of integers that are no fractions of 255, as uint8
    of many values, or of 0 and 255, are."""
    plane = label_plane(array)
    if plane is None:
        return False
    return bool(plane.dtype != np.uint8 or (plane.max() < 128 and len(np.unique(plane)) <= 64))


def holds_label_map(path: Path) -> bool:
    """Whether the array of a file is a label map; False where it cannot be read."""
    try:
        return _holds_integers(path) and is_label_map(read_array(path))
    except InputError:
        return False


def _holds_integers(path: Path) -> bool:
    """Whether the header of an array, which is all that is read, says so."""
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).dtype.kind in "iub"
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            with archive.open(f"{_choose(names, path)}.npy") as file:
                np.lib.format.read_magic(file)
                return np.lib.format.read_array_header_1_0(file)[2].kind in "iub"
    except Exception as error:  # as in read_array
        raise InputError(f"{path}: cannot be read as an array ({reason(error)})") from error
