"""Masks of every kind of file and coding, and the values that no class stands for."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from own_data import add_pair, source, write
from PIL import Image

from deepcrf_ext.data import camvid, open_dataset, voc
from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.data.label_maps import parse_colour
from deepcrf_ext.errors import InputError

INDICES = np.array([[0, 1, 2], [1, 255, 0]], np.uint8)
MIXED = {0: "background", 255: "crack", "#c8140a": "ball"}


def rgb(indices: np.ndarray) -> np.ndarray:
    return np.repeat(indices[..., None], 3, axis=2)


def labels(tmp_path: Path, **settings: object) -> list[list[int]]:
    """The labels of the one mask that is there."""
    return open_dataset(source(root=tmp_path, **settings), split="t")[0].labels.tolist()


def put(tmp_path: Path, mask: np.ndarray | Image.Image, suffix: str = "png") -> Path:
    """An image of 2 x 3 pixels and its mask."""
    picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    write(tmp_path / "images/t/a.png", np.zeros((picture.height, picture.width, 3), np.uint8))
    path = tmp_path / f"masks/t/a.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def with_palette(indices: np.ndarray) -> Image.Image:
    picture = Image.fromarray(indices)
    picture.putpalette(voc_palette(256).tobytes())
    return picture


@pytest.mark.parametrize(
    "mask",
    [
        INDICES,
        rgb(INDICES),
        np.dstack([rgb(INDICES), np.full((2, 3), 7, np.uint8)]),
        np.dstack([INDICES, np.full((2, 3), 9, np.uint8)]),
        INDICES.astype(np.uint16),
        INDICES.astype(np.int32),
        with_palette(INDICES),
    ],
    ids=["grey", "rgb", "rgba", "grey-alpha", "16-bit", "32-bit", "palette"],
)
def test_masks_of_indices(tmp_path: Path, mask) -> None:
    put(tmp_path, mask, "tif" if getattr(mask, "dtype", None) == np.int32 else "png")
    assert labels(tmp_path, classes=("a", "b", "c")) == INDICES.tolist()


def test_one_bit_masks(tmp_path: Path) -> None:
    put(tmp_path, np.array([[True, False, True]]))
    assert labels(tmp_path, classes=("a", "b")) == [[1, 0, 1]]


def test_16_bit_values_are_mapped(tmp_path: Path) -> None:
    put(tmp_path, np.array([[255, 256]], np.uint16))
    assert labels(tmp_path, labels={255: "a", 256: "b"}) == [[0, 1]]
    put(tmp_path, np.array([[7, 300, 65535]], np.uint16))
    assert labels(tmp_path, labels={7: "a", 300: "b", 65535: "ignore"}) == [[0, 1, 255]]
    with pytest.raises(InputError, match=r"a.png: holds 65535 \(33.3% of the pixels\)"):
        labels(tmp_path, labels={7: "a", 300: "b"})


def test_ranges_of_indices(tmp_path: Path) -> None:
    """As of ADE20K: 0 is nothing, 1 to 150 are the classes."""
    given = {"0": "ignore", "1..3": "0..2", "4": 1}
    put(tmp_path, np.array([[0, 1, 2, 3, 4]], np.uint8))
    dataset = open_dataset(source(root=tmp_path, classes=("a", "b", "c"), labels=given), split="t")
    assert dataset[0].labels.tolist() == [[255, 0, 1, 2, 1]]
    assert open_dataset(dataset.source, split="t")[0].labels.tolist() == [[255, 0, 1, 2, 1]]


def test_values_and_colours_in_one_map(tmp_path: Path) -> None:
    mask = np.array([[[0, 0, 0], [255, 255, 255], [200, 20, 10]]], np.uint8)
    put(tmp_path, mask)
    assert labels(tmp_path, labels=MIXED) == [[0, 1, 2]]
    put(tmp_path, np.array([[0, 255, 255]], np.uint8))
    assert labels(tmp_path, labels=MIXED) == [[0, 1, 1]]
    dataset = open_dataset(source(root=tmp_path, labels=MIXED), split="t")
    assert dataset.classes == ("background", "crack", "ball")
    assert dataset.palette.tolist() == [[0, 0, 0], [255, 255, 255], [200, 20, 10]]


def test_palettes_as_indices_or_as_colours(tmp_path: Path) -> None:
    put(tmp_path, with_palette(np.array([[0, 15, 255]], np.uint8)))
    by_colour = {"#000000": "ground", "#c08080": "person", "224 224 192": "ignore"}
    assert labels(tmp_path, labels=by_colour, palette_masks="colours") == [[0, 1, 255]]
    assert labels(tmp_path, labels={0: "ground", 15: "person", 255: "ignore"}) == [[0, 1, 255]]
    with pytest.raises(InputError, match="holds '#c08080', '#e0e0c0'"):
        labels(tmp_path, labels={0: "ground"}, palette_masks="colours")


def test_published_colours_by_name(tmp_path: Path) -> None:
    put(tmp_path, np.array([[[128, 128, 128], [0, 0, 192], [192, 0, 192], [0, 0, 0]]], np.uint8))
    dataset = open_dataset(source(root=tmp_path, labels="camvid-colours"), split="t")
    assert [*dataset.classes] == [*camvid.COLOURS]
    assert dataset[0].labels.tolist() == [[0, 4, 10, 255]]
    american = open_dataset(source(root=tmp_path, labels="camvid-colors"), split="t")
    assert american.source == dataset.source
    put(tmp_path, voc_palette(256)[np.array([[0, 15, 20, 255]])])
    dataset = open_dataset(source(root=tmp_path, labels="voc-colours"), split="t")
    assert dataset.classes == voc.CLASSES
    assert dataset[0].labels.tolist() == [[0, 15, 20, 255]]
    assert open_dataset(dataset.source, split="t")[0].labels.tolist() == [[0, 15, 20, 255]]


def test_colours_of_the_classes_code_masks_too(tmp_path: Path) -> None:
    put(tmp_path, np.array([[[10, 20, 30], [40, 50, 60], [255, 255, 255]]], np.uint8))
    assert labels(tmp_path, classes={"a": "#0a141e", "b": [40, 50, 60]}) == [[0, 1, 255]]


def test_a_value_that_could_be_an_index_and_a_colour_is_refused(tmp_path: Path) -> None:
    put(tmp_path, np.array([[0, 1, 255]], np.uint8))
    classes = {"dark": [0, 0, 0], "white": [255, 255, 255]}
    with pytest.raises(InputError, match="holds 255 .*255 could be an index and a colour"):
        labels(tmp_path, classes=classes)
    assert labels(tmp_path, classes=classes, labels={0: 0, 1: "ignore", 255: 1}) == [[0, 255, 1]]


def test_every_unknown_value_is_named_with_its_file(tmp_path: Path) -> None:
    path = put(tmp_path, np.array([[0, 3, 9, 9]], np.uint8))
    with pytest.raises(InputError) as caught:
        labels(tmp_path, classes=("a", "b"))
    assert str(caught.value).startswith(f"{path}: holds 3, 9 (75.0% of the pixels), which is no")
    with pytest.raises(InputError, match=r"holds 3, 9 .* data.labels does not map"):
        labels(tmp_path, labels={0: "a"})


def test_jpeg_masks_are_explained(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 5:33] = 255
    path = put(tmp_path, mask, "jpg")
    unknown = set(np.unique(np.asarray(Image.open(path)))) - {0, 255}
    with pytest.raises(InputError, match=f"and {len(unknown) - 12} more .*JPEG and the like chang"):
        labels(tmp_path, labels={0: "a", 255: "b"})


def blocks() -> np.ndarray:
    """0 and 1 in squares that JPEG keeps apart."""
    return np.kron(np.array([[0, 1, 1], [1, 0, 1]]), np.ones((16, 16))).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("separator", ["..", "-"])
def test_ranges_read_masks_whose_values_have_changed(
    tmp_path: Path, suffix: str, separator: str
) -> None:
    """As JPEG and resizing change them."""
    path = put(tmp_path, 255 * blocks(), suffix)
    ranges = {f"0{separator}127": "a", f"128 {separator} 255": "b"}
    assert labels(tmp_path, labels=ranges) == blocks().tolist()
    dataset = open_dataset(source(root=tmp_path, labels=ranges), split="t")
    assert dataset.classes == ("a", "b")
    assert open_dataset(dataset.source, split="t")[0].labels.tolist() == blocks().tolist()
    with pytest.raises(InputError, match=f"{path}: holds .*128..255: crack"):
        labels(tmp_path, labels={7: "a", 9: "b"})


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif"])
def test_indices_in_a_lossy_file_are_refused(tmp_path: Path, suffix: str) -> None:
    """Each may have become another index."""
    path = put(tmp_path, blocks(), suffix)
    path = path.rename(path.with_suffix(".png"))  # whatever it is called
    for settings in (
        {"classes": "abcdefgh"},
        {"classes": "abcdefgh", "labels": {"0..7": "0..7"}},
        {"labels": {n: f"c{n}" for n in range(8)}},
    ):
        if "classes" in settings:
            settings = {**settings, "classes": tuple(settings["classes"])}
        with pytest.raises(InputError, match=f"{path}: 0 and 1 cannot be told apart; JPEG and"):
            labels(tmp_path, **settings)
    Image.fromarray(rgb(blocks())).save(path, format="webp", lossless=True)
    assert labels(tmp_path, classes=("a", "b")) == blocks().tolist()
    frames = [Image.fromarray(rgb(blocks())), Image.fromarray(rgb(1 - blocks()))]
    frames[0].save(path, format="webp", lossless=True, save_all=True, append_images=frames[1:])
    assert labels(tmp_path, classes=("a", "b")) == blocks().tolist()


def test_masks_that_cannot_be_read(tmp_path: Path) -> None:
    path = put(tmp_path, np.zeros((2, 2), np.float32), "tif")
    with pytest.raises(InputError, match=f"{path}: a floating-point mask"):
        labels(tmp_path, classes=("a",))
    path.unlink()
    path = put(tmp_path, np.array([[-1, 2]], np.int32), "tif")
    with pytest.raises(InputError, match=r"holds values -1\.\.2; must be 0\.\.65535"):
        labels(tmp_path, classes=("a",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": "a"}, "key 'x' must be a value"),
        ({-1: "a"}, "key -1 must be a value"),
        ({70000: "a"}, "key 70000 must be"),
        ({"#12": "a"}, "key '#12' must be"),
        ({0: "a", "#000000": "b"}, "0 is there twice, once as '#000000'"),
        ({"0..9": "a", 7: "b"}, "7 is there twice, once as 7"),
        ({"9..0": "a"}, "key '9..0' must be a value, 0..65535, a range"),
        ({"0..70000": "a"}, "key '0..70000' must be"),
        ({0: "a", 1: 7}, "maps to 7; must be the name"),
        ({}, r"got \{\}, must be a map of values"),
        ([1], r"got \[1\], must be a map of values"),
        ("{0: a, #c8140a: b}", "which is not YAML; .* colours in quotes"),
        ({0: "a", 1: ["b"]}, r"maps to \['b'\]; must be the name"),
        ({0: False, 1: True}, "maps to False; .* a name such as yes or no needs quotes"),
        ("rainbow", "data.labels: neither"),
    ],
)
def test_bad_label_maps(tmp_path: Path, given, message: str) -> None:
    put(tmp_path, np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match=message):
        labels(tmp_path, labels=given)


@pytest.mark.parametrize(
    ("name", "text"),
    [("l.yaml", "0: a\n'#ff0000': b\n'#ff0000': c\n"), ("l.json", '{"0": "a", "0": "c"}')],
)
def test_a_file_with_a_key_twice_is_refused(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path, np.zeros((2, 2), np.uint8))
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: the key '.*' is there twice"):
        labels(tmp_path, labels=name)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_lose_nothing(tmp_path: Path, suffix: str) -> None:
    """Pillow gives their upper 8 bits, of which indices have none."""
    mask = tmp_path / f"masks/t/a.{suffix}"
    put(tmp_path, INDICES, suffix)
    cv2.imwrite(str(mask), rgb(INDICES).astype(np.uint16))
    assert labels(tmp_path, classes=("a", "b", "c")) == INDICES.tolist()
    colours = np.array([[[0, 0, 0], [10, 20, 200]]], np.uint16)  # BGR
    cv2.imwrite(str(tmp_path / "images/t/a.png"), colours.astype(np.uint8))
    cv2.imwrite(str(mask), 257 * colours)
    assert labels(tmp_path, labels={0: "ground", "#c8140a": "ball"}) == [[0, 1]]
    cv2.imwrite(str(mask), 3 * colours)
    with pytest.raises(InputError, match=f"{mask}: colours of 16 bits; must have 8 bits each"):
        labels(tmp_path, labels={0: "ground", "#c8140a": "ball"})


def test_targets_must_be_classes(tmp_path: Path) -> None:
    put(tmp_path, np.array([[7, 8, 9]], np.uint8))
    with pytest.raises(InputError, match="8 is mapped to 'c'; must be 'ignore' or one of .* a, b"):
        labels(tmp_path, classes=("a", "b"), labels={7: "a", 8: "c"})
    assert labels(tmp_path, classes=("a", "b"), labels={7: 0, 8: 1, 9: 255}) == [[0, 1, 255]]
    for wrong in (2, -1, True, "0..1", "1..0"):
        with pytest.raises(InputError, match="is mapped to"):
            labels(tmp_path, classes=("a", "b"), labels={7: wrong})
    with pytest.raises(
        InputError, match="'7..9' is mapped to '0..2'; must be 3 of the indices of "
    ):
        labels(tmp_path, classes=("a", "b"), labels={"7..9": "0..2"})
    with pytest.raises(InputError, match="maps to '0..2'; must be the name of a class"):
        labels(tmp_path, labels={"7..9": "0..2"})


def test_json_keys_are_text(tmp_path: Path) -> None:
    put(tmp_path, np.array([[0, 255]], np.uint8))
    (tmp_path / "map.json").write_text('{"0": "a", "255": "b"}')
    assert labels(tmp_path, labels="map.json") == [[0, 1]]
    (tmp_path / "map.json").write_text('["a"]')
    with pytest.raises(InputError, match=r"map.json holds \[.a.\], must be a map"):
        labels(tmp_path, labels="map.json")
    (tmp_path / "map.json").write_text("{")
    with pytest.raises(InputError, match="map.json: not YAML or JSON"):
        labels(tmp_path, labels="map.json")


def test_another_size_is_named(tmp_path: Path) -> None:
    add_pair(tmp_path / "images/t/a.png", tmp_path / "masks/t/a.png", np.ones((4, 4), np.uint8))
    write(tmp_path / "masks/t/a.png", np.ones((4, 5), np.uint8))
    with pytest.raises(InputError, match="label map is 5x4 pixels, but its image .* is 4x4$"):
        labels(tmp_path, classes=("a", "b"))


def test_a_mask_that_was_not_turned_with_its_photograph(tmp_path: Path) -> None:
    add_pair(tmp_path / "images/t/a.jpg", tmp_path / "masks/t/a.png", np.ones((4, 6), np.uint8))
    with Image.open(tmp_path / "images/t/a.jpg") as photograph:
        orientation = photograph.getexif()
        orientation[0x0112] = 6
        photograph.save(tmp_path / "images/t/a.jpg", exif=orientation)
    with pytest.raises(InputError, match="is 4x6; where its EXIF orientation turns it, the mask"):
        labels(tmp_path, classes=("a", "b"))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("colours", [False, True])
def test_masks_are_turned_as_their_exif_says(
    tmp_path: Path, turn: int, suffix: str, colours: bool
) -> None:
    """As images and in viewers, where an editor has kept the tag of the photograph."""
    indices = np.array([[0, 1, 2], [1, 1, 0]], np.uint8)
    stored = Image.fromarray(rgb(indices) if colours or suffix == "webp" else indices)
    exif = Image.Exif()
    exif[0x0112] = turn
    image = write(tmp_path / "images/t/a.png", rgb(indices))
    Image.fromarray(rgb(indices)).save(image, exif=exif)
    mask = tmp_path / f"masks/t/a.{suffix}"
    mask.parent.mkdir(parents=True)
    stored.save(mask, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    dataset = open_dataset(source(root=tmp_path, classes=("a", "b", "c")), split="t")
    np.testing.assert_array_equal(dataset[0].labels, dataset[0].image[..., 0])
    shape = (3, 2) if turn > 4 else (2, 3)
    assert dataset[0].labels.shape == shape


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("#C8140a", (200, 20, 10)),
        ("200,20, 10", (200, 20, 10)),
        ("(200, 20, 10)", (200, 20, 10)),
        ([200, 20, 10], (200, 20, 10)),
        ("200", None),
        ([200, 20], None),
        ([256, 0, 0], None),
        (True, None),
    ],
)
def test_colours(text: object, colour: object) -> None:
    assert parse_colour(text) == colour
