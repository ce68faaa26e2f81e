"""TIFFs as GDAL writes them: bands that are tagged as no colours, or lie in separate planes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcrf_ext.data.images import read_image
from deepcrf_ext.data.label_maps import code_values, colour_code
from deepcrf_ext.data.masks import read_codes
from deepcrf_ext.errors import InputError

BANDS = np.random.default_rng(0).integers(0, 4096, (7, 9, 8), np.uint16)


def write(path: Path, bands: np.ndarray, colours: str = "minisblack", **options: Any) -> Path:
    """A TIFF of bands [H, W, n], of which those that are no colours are of no known kind."""
    extra = bands.shape[2] - (3 if colours == "rgb" else 1)
    separate = options.get("planarconfig") == "separate"
    pixels = np.moveaxis(bands, 2, 0) if separate else bands
    options = {"planarconfig": "contig", **options}
    tifffile.imwrite(path, pixels, photometric=colours, extrasamples=[0] * extra, **options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "colours": "rgb"},
        {"compression": "zlib", "predictor": True, "tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
    ids=str,
)
def test_three_bands_are_colours(tmp_path: Path, options: dict[str, Any]) -> None:
    deep, flat = BANDS[..., :3], (BANDS[..., :3] >> 4).astype(np.uint8)
    for bands in (deep, flat):
        path = write(tmp_path / "a.tif", bands, **options)
        np.testing.assert_array_equal(read_image(path), flat)
    assert read_codes(path)[2, 3] == colour_code(flat[2, 3].tolist())


@pytest.mark.parametrize("bands", [4, 5, 8])
def test_of_more_bands_the_colours_are_taken_where_they_are_told(tmp_path, bands: int) -> None:
    path = write(tmp_path / "a.tif", BANDS[..., :bands], "rgb")
    np.testing.assert_array_equal(read_image(path), BANDS[..., :3] >> 4)
    write(path, BANDS[..., :bands])
    with pytest.raises(InputError, match=f"a.tif: {bands} bands of 16 bits; must be one, or three"):
        read_image(path)


@pytest.mark.parametrize("colours", ["rgb", "minisblack"])
def test_bands_are_turned_upright(tmp_path: Path, colours: str) -> None:
    """Once: OpenCV turns a TIFF by itself."""
    stored = BANDS[..., :3]
    path = write(tmp_path / "a.tif", stored, colours, extratags=[(274, "H", 1, 6)])
    np.testing.assert_array_equal(read_image(path), np.rot90(stored >> 4, 3))
    grey = np.repeat(BANDS[..., :1], 3, 2)
    write(path, grey, colours, extratags=[(274, "H", 1, 6)])
    np.testing.assert_array_equal(code_values(read_codes(path)), np.rot90(grey[..., 0], 3))


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_other_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.tif", BANDS[..., :3].astype(kind))
    with pytest.raises(InputError, match=f"a.tif: bands of {kind}; must be integers of 8 or 16"):
        read_image(path)


@settings(max_examples=100, deadline=None)
@given(
    separate=st.booleans(),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0.02, 1),
)
def test_any_damage_gives_an_image_or_an_input_error(tmp_path_factory, separate, damage, keep):
    path = tmp_path_factory.mktemp("damaged") / "a.tif"
    write(path, BANDS[..., :3], planarconfig="separate" if separate else "contig")
    content = bytearray(path.read_bytes())
    for place, value in damage:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[: int(keep * len(content))])
    message = str(path)
    try:
        assert read_image(path).shape[2] == 3
    except InputError as error:
        message = str(error)
    assert str(path) in message
