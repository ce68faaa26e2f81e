"""Reading images and label maps from files, and writing label maps."""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from deepcrf_ext.data.arrays import is_array
from deepcrf_ext.data.tiff_bands import as_rgb, in_deep_planes, is_tiff
from deepcrf_ext.errors import InputError, reason
from deepcrf_ext.libraries import cv2

for _name in ("PIL", "tifffile"):  # whose warnings of files would stand among a command's lines
    logging.getLogger(_name).addHandler(logging.NullHandler())

# All that Pillow's decoders are known to raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
IMAGE_SUFFIXES = (
    *JPEG_SUFFIXES,
    *(".png", ".bmp", ".ppm", ".pgm", ".pnm"),
    *(".tif", ".tiff", ".webp", ".gif", ".jp2", ".j2k", ".jpx", ".avif"),
)
"""Files that are taken for images in a folder, in any case."""

# Pillow stretches grey PNGs of 2 and 4 bits to 0..255; these factors give the stored values back.
_GREY_STRETCH = {"L;2": 85, "L;4": 17}


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file of any size as uint8 [H, W, 3], RGB.

    Grey, palette, CMYK and 16-bit images are converted, an alpha channel is dropped, and of an
    animation the first frame is taken. An EXIF orientation is applied, so that the array is what
    viewers and labelling tools show.

    16-bit images keep the upper 8 of the bits that they use: of 8, 10, 12, 14 or 16, the fewest
    that hold their highest value. So the 12 bits of a camera come out as bright as they are, and a
    16-bit image that uses less than a quarter of its range is brightened.

    Raises:
        InputError: the file is missing, empty, truncated, corrupt or not an image.
    """
    path = Path(path)
    with open_picture(path) as picture:
        if picture.mode == "F":
            raise InputError(f"{path}: floating-point image; must have 8 or 16 bits a channel")
        deep = deep_channels(picture)
        if deep is not None:
            return np.ascontiguousarray(_upper_bits(deep))
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
            grey = _upper_bits(np.asarray(picture).clip(0, 65535))
            return np.repeat(grey[..., None], 3, axis=2)
        return _rgb(picture.convert("RGBA") if "transparency" in picture.info else picture)


_ORIENTATION = 0x0112
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda array: np.rot90(array, 2),
    4: np.flipud,
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, 3),
    7: lambda array: np.rot90(array, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""How viewers turn the pixels [H, W, ...] of each EXIF orientation."""


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1, as it is stored, where it has none."""
    value = picture.getexif().get(_ORIENTATION, 1)
    return value if value in _TURNS else 1


def upright(array: np.ndarray, picture: Image.Image) -> np.ndarray:
    """Pixels [H, W, ...] of a picture, turned as its EXIF orientation says."""
    turn = _TURNS.get(orientation(picture))
    return array if turn is None else turn(array)


_DEPTHS = (8, 10, 12, 14, 16)
_BAND = 1 << 22  # pixels that are converted at a time


def _upper_bits(values: np.ndarray) -> np.ndarray:
    """Values of up to 16 bits as uint8: the upper 8 of the bits that they use."""
    highest = int(values.max(initial=0))
    used = next(bits for bits in _DEPTHS if highest < 1 << bits)
    return (values >> (used - 8)).astype(np.uint8)


def is_deep(picture: ImageFile.ImageFile) -> bool:
    """Whether a picture has several channels of 16 bits, of which Pillow gives 8."""
    arguments = picture.tile[0][3] if picture.tile else None
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw_mode, str) and raw_mode.startswith(("RGB", "LA")) and ";16" in raw_mode


def deep_channels(picture: ImageFile.ImageFile) -> np.ndarray | None:
    """uint16 [H, W, 3] of the colours of a picture that `is_deep`, turned as its EXIF orientation
    says; None for others."""
    if not is_deep(picture):
        return None
    unchanged = cv2.IMREAD_UNCHANGED
    try:
        decoded = cv2.imdecode(np.frombuffer(_content(picture), np.uint8), unchanged)
    except cv2.error:  # more than 2**30 pixels
        decoded = None
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        return None  # Pillow says what is wrong, or does what it can
    colours: np.ndarray = decoded[..., 2::-1]
    return colours if picture.format == "TIFF" else upright(colours, picture)  # as OpenCV does


def _content(picture: ImageFile.ImageFile) -> bytes:
    """The bytes of the file that a picture was opened from."""
    assert picture.fp is not None  # it is open
    place = picture.fp.tell()
    picture.fp.seek(0)
    content = picture.fp.read()
    picture.fp.seek(place)
    return content


def _rgb(picture: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3], converted in bands: a large picture is in memory once beside the array."""
    picture.load()
    width, height = picture.size
    array = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        array[top : top + rows] = np.asarray(band.convert("RGB"))
    return array


def shrink(image: np.ndarray, max_side: int | None) -> np.ndarray:
    """The image with a longest side of at most `max_side` pixels, by averaging over areas.

    Args:
        image: uint8 [H, W, 3].
        max_side: at least 1; None keeps every image.

    Returns:
        uint8 [h, w, 3]; the image itself where it is small enough.
    """
    height, width = image.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return image
    factor = max_side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map, an image with one channel of class indices or a palette, as uint8 [H, W].

    Raises:
        InputError: the file cannot be decoded, has colour channels, or holds values above 255.
    """
    path = Path(path)
    with open_picture(path) as picture:
        if not has_values(picture):
            raise InputError(
                f"{path}: a label map in mode {picture.mode}; "
                "must have one channel of class indices, or a palette"
            )
        labels = read_values(picture)
        if labels.min() < 0 or labels.max() > 255:
            raise InputError(f"{path}: label values {labels.min()}..{labels.max()}; must be 0..255")
        return labels.astype(np.uint8)


def has_values(picture: ImageFile.ImageFile) -> bool:
    """Whether a picture has one channel of integers, palettes among them."""
    return picture.mode in ("1", "L", "P", "I") or picture.mode.startswith("I;16")


def read_values(picture: ImageFile.ImageFile) -> np.ndarray:
    """The stored values, integers [H, W], of a picture that has one channel of them; turned by its
    EXIF orientation, as images are."""
    tile = picture.tile[0] if picture.tile else None
    picture.load()  # which turns a TIFF by itself
    values = upright(np.asarray(picture), picture)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    stretch = _GREY_STRETCH.get(tile[3], 1) if tile and isinstance(tile[3], str) else 1
    return values // values.dtype.type(stretch)


def is_lossy(path: Path) -> bool:
    """Whether an image file is of a kind that changes values: JPEG, AVIF or lossy WebP.

    Raises InputError when it cannot be read.
    """
    if is_array(path):
        return False
    with open_picture(path) as picture:
        return picture.format in ("JPEG", "MPO", "AVIF") or (
            picture.format == "WEBP" and _is_lossy_webp(path)
        )


def _is_lossy_webp(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, size = head[:4], int.from_bytes(head[4:], "little")
            if kind in (b"VP8 ", b"VP8L"):
                return kind == b"VP8 "
            file.seek(16 if kind == b"ANMF" else size + size % 2, os.SEEK_CUR)  # a frame's header
    return False


def write_labels(path: str | Path | BinaryIO, labels: np.ndarray, palette: np.ndarray) -> None:
    """Write a label map as a PNG with a palette, the format of PASCAL VOC.

    Args:
        path: the file to write, ending in .png, or one that is open.
        labels: uint8 [H, W].
        palette: uint8 [K, 3], RGB. Index 255 is shown in VOC's cream, others from K on in black.

    Raises:
        ValueError: an argument has another shape or dtype.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2 or labels.size == 0:
        raise ValueError(
            f"labels: got {labels.dtype} {list(labels.shape)}, must be uint8 [H, W], not empty"
        )
    if palette.ndim != 2 or palette.shape[1] != 3 or len(palette) > 256:
        raise ValueError(f"palette: got shape {list(palette.shape)}, must be [K, 3] with K <= 256")
    table = np.zeros((256, 3), np.uint8)
    table[255] = voc_palette(256)[255]
    table[: len(palette)] = palette
    picture = Image.fromarray(labels)
    picture.putpalette(table.tobytes())
    picture.save(path, format="PNG")


def voc_palette(size: int) -> np.ndarray:
    """The first `size` colours of PASCAL VOC's palette, uint8 [size, 3] RGB.

    Bits 0, 1, 2 of an index are the highest bits of red, green and blue, bits 3, 4, 5 the
    next ones, and so on.
    """
    index = np.arange(size)[:, None] >> np.arange(3)  # [size, 3], one column a channel
    colours = np.zeros((size, 3), np.int64)
    for step in range(8):
        colours |= ((index >> 3 * step) & 1) << (7 - step)
    return colours.astype(np.uint8)


@contextmanager
def open_picture(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image, turning every error of decoding into an InputError that names the file."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes)")
        # Not by its name, as Pillow maps a plain TIFF into memory then, of the wrong width where
        # EXIF turns it.
        with _any_size(), ExitStack() as opened:
            yield _open(opened.enter_context(path.open("rb")), path, opened)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path}: cannot be read as an image (of an unknown format, or of other channels than "
            "grey, RGB or RGBA of 8 or 16 bits)"
        ) from error
    except _DECODER_ERRORS as error:
        why = "out of memory" if isinstance(error, MemoryError) else reason(error)
        raise InputError(f"{path}: cannot be read as an image ({why})") from error


def _open(file: BinaryIO, path: Path, opened: ExitStack) -> ImageFile.ImageFile:
    try:
        picture = opened.enter_context(Image.open(file))
    except UnidentifiedImageError:
        if not is_tiff(path):
            raise
    else:
        if not in_deep_planes(getattr(picture, "tag_v2", {})):
            return picture
    return opened.enter_context(Image.open(as_rgb(path)))


_size_lock = threading.Lock()
_size_limits: list[int | None] = []  # Pillow's own limit, once for each picture that is open


@contextmanager
def _any_size() -> Iterator[None]:
    """While a file that was named is read, Pillow takes it at any size, without a warning.

    Its limit, which guards programs that open what others send, is back where none is open.
    """
    with _size_lock:
        _size_limits.append(_size_limits[0] if _size_limits else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _size_lock:
            limit = _size_limits.pop()
            if not _size_limits:
                Image.MAX_IMAGE_PIXELS = limit
