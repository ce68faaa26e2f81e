"""TIFFs of bands that Pillow does not take for colours, or reads half of: those of GDAL."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from deepcrf_ext.errors import InputError, reason
from deepcrf_ext.libraries import tifffile

_BITS, _ORIENTATION, _PLANES = 258, 274, 284  # tags
_SEPARATE = 2
_FEW = "must be one, or three of red, green and blue, as gdal_translate -b 3 -b 2 -b 1 takes them"


def as_rgb(path: Path) -> BytesIO:
    """A TIFF whose three bands of 8 or 16 bits are tagged as no colours, or lie in separate planes,
    as one that every reader takes. Of a TIFF that is tagged as RGB further bands are dropped.

    Raises InputError, naming the file, for other bands and for what cannot be decoded.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            bands, kind = page.samplesperpixel, np.dtype(page.dtype)
            is_rgb = page.photometric == tifffile.PHOTOMETRIC.RGB
            if kind not in (np.uint8, np.uint16):
                raise InputError(f"{path}: bands of {kind}; must be integers of 8 or 16 bits")
            if not page.size:
                raise InputError(f"{path}: holds no pixels")
            if bands != 3 and not (is_rgb and bands > 3):
                raise InputError(f"{path}: {bands} bands of {8 * kind.itemsize} bits; {_FEW}")
            pixels = np.moveaxis(page.asarray(), page.axes.index("S"), -1)[..., :3]
            turn = (_ORIENTATION, "H", 1, page.tags.valueof(_ORIENTATION, default=1))
    except InputError:
        raise
    except Exception as error:  # tifffile raises errors of many kinds on damaged files
        raise InputError(f"{path}: cannot be read as an image ({reason(error)})") from error
    plain = BytesIO()
    pixels = np.ascontiguousarray(pixels)
    tifffile.imwrite(plain, pixels, photometric="rgb", metadata=None, extratags=[turn])
    plain.seek(0)
    return plain


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does, of 32 or 64 bits."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def in_deep_planes(tags: Any) -> bool:
    """Whether the tags of a picture are those of 16 bits in separate planes, of which Pillow reads
    the lower bytes for all of it, and OpenCV mixes the planes."""
    bits = tags.get(_BITS, (8,))
    return tags.get(_PLANES) == _SEPARATE and len(bits) > 1 and max(bits) > 8
