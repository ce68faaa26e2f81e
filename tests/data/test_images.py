"""Image and label files: every common format is read, every damaged file is named in an error."""

from __future__ import annotations

import struct
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from deepcrf_ext.data import images, read_image, read_labels, shrink, write_labels
from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.errors import InputError

RGB = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
GREY = RGB[..., 0]


def as_grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, axis=2)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_read_image_gives_rgb(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", RGB))
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_read_image_converts_grey_and_drops_alpha(tmp_path: Path, channels: int) -> None:
    alpha = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7, 1)
    array = {1: GREY, 2: np.dstack([GREY, alpha]), 4: np.dstack([RGB, alpha])}[channels]
    image = read_image(save(tmp_path / "a.png", array))
    np.testing.assert_array_equal(image, RGB if channels == 4 else as_grey(GREY))


def test_read_image_takes_the_upper_8_of_16_bits(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 256 + 77
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_image(save(tmp_path / name, deep)), as_grey(GREY))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_images_keep_the_upper_bits_that_they_use(
    tmp_path: Path, bits: int, channels: int, suffix: str
) -> None:
    """As those of cameras, whose 12 bits lie in 16."""
    wanted = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    wanted[0, 0] = 255
    deep = wanted.astype(np.uint16) << (bits - 8) | (1 << (bits - 8)) - 1
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), deep)
    rgb = as_grey(wanted[..., 0]) if channels == 1 else wanted[..., 2::-1]
    np.testing.assert_array_equal(read_image(path), rgb)


def test_deep_colours_are_turned_upright(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (5, 7, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    chunks = (tmp_path / "a.png").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = b"eXIf" + exif.tobytes().removeprefix(b"Exif\x00\x00")
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "a.png").write_bytes(chunks[:33] + chunk + chunks[33:])
    wanted = np.rot90((deep >> 4).astype(np.uint8)[..., ::-1], -1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), wanted)


@pytest.mark.filterwarnings("error")
def test_images_of_any_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above Pillow's limit too, which others meet as before, and in bands."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    monkeypatch.setattr(images, "_BAND", 10)
    path = save(tmp_path / "a.png", RGB)
    with ThreadPoolExecutor(4) as threads:
        for image in threads.map(read_image, [path] * 20):
            np.testing.assert_array_equal(image, RGB)
    assert read_labels(save(tmp_path / "b.png", GREY)).shape == GREY.shape
    assert Image.MAX_IMAGE_PIXELS == 9
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    with pytest.raises(InputError):
        read_image(tmp_path / "missing.png")
    assert Image.MAX_IMAGE_PIXELS == 9


@pytest.mark.parametrize("suffix", ["gif", "jp2", "j2k", "avif", "webp"])
def test_further_formats(tmp_path: Path, suffix: str) -> None:
    Image.init()
    if f".{suffix}" not in Image.EXTENSION:
        pytest.skip(f"this Pillow has no {suffix}")
    first = np.full((20, 30, 3), (200, 40, 90), np.uint8)
    second = Image.fromarray(255 - first)
    path = tmp_path / f"a.{suffix}"
    frames = {"save_all": True, "append_images": [second]} if suffix == "gif" else {}
    Image.fromarray(first).save(path, **frames)
    assert f".{suffix}" in images.IMAGE_SUFFIXES
    assert np.abs(read_image(path).astype(int) - first).max() <= 6


def test_read_image_looks_up_palettes_and_transparency(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY % 4)
    picture.putpalette(voc_palette(256).tobytes())
    picture.save(tmp_path / "a.png", transparency=b"\x00\xff\x80")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), voc_palette(4)[GREY % 4])


def test_read_image_bilevel_and_cmyk(tmp_path: Path) -> None:
    bits = save(tmp_path / "a.png", GREY % 2 == 1)
    np.testing.assert_array_equal(read_image(bits), as_grey((GREY % 2) * np.uint8(255)))
    Image.new("CMYK", (7, 5), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    difference = read_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))],
)
@pytest.mark.parametrize("array", [RGB, GREY, GREY.astype(np.uint16) * 256])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_read_image_applies_exif_orientation(
    tmp_path: Path, orientation, turn, array, suffix
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(save(tmp_path / f"a.{suffix}", array, exif=exif))
    np.testing.assert_array_equal(image, turn(RGB if array is RGB else as_grey(GREY)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5000), (5000, 2)])
def test_extreme_sizes(tmp_path: Path, shape: tuple[int, int]) -> None:
    assert read_image(save(tmp_path / "a.png", np.zeros(shape, np.uint8))).shape == (*shape, 3)
    assert read_labels(tmp_path / "a.png").shape == shape


@pytest.mark.parametrize("reader", [read_image, read_labels])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (
            b"not an image at all",
            r"cannot be read as an image \(of an unknown format, or of other channels",
        ),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "cannot be read as an image"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, reader, content, message) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        reader(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("reader", [read_image, read_labels])
def test_sizes_beyond_all_memory_are_named(tmp_path: Path, reader) -> None:
    """As of a damaged header."""
    path = save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = 2 * (2**31 - 1).to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.png: cannot be read as an image \(out of memory\)"):
        reader(path)


def test_deep_colours_that_opencv_refuses_are_read_by_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of more pixels than it takes."""
    deep = np.full((3, 4, 3), 0x9012, np.uint16)
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), deep)

    def refuse(*_: object) -> None:
        raise cv2.error("pixels <= CV_IO_MAX_IMAGE_PIXELS")

    monkeypatch.setattr(cv2, "imdecode", refuse)
    np.testing.assert_array_equal(read_image(path), (deep >> 8).astype(np.uint8))


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path)


def test_a_floating_point_image_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match="floating-point"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"cut.{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=str(path)):
        read_image(path)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp"]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_any_damage_gives_an_image_or_an_input_error(kind: str, damage) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        Image.fromarray(RGB).save(path, format=kind)
        content = bytearray(path.read_bytes())
        for place, value in damage:
            content[int(place * (len(content) - 1))] = value
        path.write_bytes(content)
        for reader, depth in ((read_image, 3), (read_labels, 2)):
            message = str(path)
            try:
                assert reader(path).ndim == depth
            except InputError as error:
                message = str(error)
            assert str(path) in message


@pytest.mark.parametrize(
    ("shape", "max_side", "expected"),
    [
        ((40, 60), 30, (20, 30)),
        ((60, 40), 30, (30, 20)),
        ((1, 300), 30, (1, 30)),
        ((40, 60), 60, (40, 60)),
        ((40, 60), None, (40, 60)),
        ((3, 2), 1, (1, 1)),
    ],
)
def test_shrink_limits_the_longest_side(shape, max_side, expected) -> None:
    image = np.full((*shape, 3), 7, np.uint8)
    small = shrink(image, max_side)
    assert small.shape == (*expected, 3)
    assert small.dtype == np.uint8
    assert (small is image) == (shape == expected)
    assert set(np.unique(small)) == {7}


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_labels_survive_writing_and_reading(labels: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        write_labels(path, labels, voc_palette(21))
        np.testing.assert_array_equal(read_labels(path), labels)
        known = labels < 21
        np.testing.assert_array_equal(read_image(path)[known], voc_palette(21)[labels[known]])


def test_ignored_pixels_are_written_in_cream(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.png", np.array([[255, 40]], np.uint8), voc_palette(21))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[(224, 224, 192), (0, 0, 0)]])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_label_values_do_not_depend_on_the_depth_of_the_file(
    tmp_path: Path, bits: int, palette: bool
) -> None:
    labels = (np.arange(40) % 2**bits).astype(np.uint8).reshape(5, 8)
    if palette:
        picture = Image.fromarray(labels)
        picture.putpalette(voc_palette(2**bits).tobytes())
        picture.save(tmp_path / "a.png", bits=bits)
    else:
        (tmp_path / "a.png").write_bytes(grey_png(labels, bits))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)


def grey_png(labels: np.ndarray, bits: int) -> bytes:
    """A grey PNG with `bits` a pixel, which Pillow reads but does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    planes = np.unpackbits(labels[..., None], axis=2)[..., 8 - bits :]
    rows = np.packbits(planes.reshape(len(labels), -1), axis=1)
    body = b"".join(b"\x00" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", labels.shape[1], len(labels), bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_labels_are_read_where_they_fit(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 20, 255]], np.uint16))
    np.testing.assert_array_equal(read_labels(path), [[0, 20, 255]])
    path = save(tmp_path / "a.png", np.array([[0, 256]], np.uint16))
    with pytest.raises(InputError, match=r"label values 0\.\.256"):
        read_labels(path)


def test_colour_label_maps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mode RGB.*one channel"):
        read_labels(save(tmp_path / "a.png", RGB))


@pytest.mark.parametrize(
    ("labels", "palette", "message"),
    [
        (np.zeros((2, 2), np.int64), voc_palette(3), "labels: got int64"),
        (np.zeros((2, 2, 1), np.uint8), voc_palette(3), "labels: got uint8"),
        (np.zeros((0, 2), np.uint8), voc_palette(3), "not empty"),
        (np.zeros((2, 2), np.uint8), voc_palette(3)[:, :2], "palette: got shape"),
    ],
)
def test_write_labels_checks_its_arguments(tmp_path: Path, labels, palette, message) -> None:
    with pytest.raises(ValueError, match=message):
        write_labels(tmp_path / "a.png", labels, palette)


def test_voc_palette_is_the_published_one() -> None:
    palette = voc_palette(256)
    published = {1: (128, 0, 0), 5: (128, 0, 128), 8: (64, 0, 0), 15: (192, 128, 128)}
    published |= {20: (0, 64, 128), 255: (224, 224, 192)}
    for index, colour in published.items():
        assert tuple(palette[index]) == colour
    assert len(np.unique(palette, axis=0)) == 256
