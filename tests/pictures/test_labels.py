"""Pictures: colours are exact, files are written at sensible sizes, wrong arguments are named."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from deepcrf_ext.pictures import labels as labels_module
from deepcrf_ext.pictures.labels import colour, legend, overlay, picture_grid

PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
CLASSES = ("red", "green", "blue")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_colour_is_the_palette_and_ignored_pixels_are_grey(dtype):
    picture = colour(np.array([[0, 1], [2, 255]], dtype), PALETTE)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[0], PALETTE[:2])
    np.testing.assert_array_equal(picture[1, 0], PALETTE[2])
    assert picture[1, 1, 0] == picture[1, 1, 1] == picture[1, 1, 2]


@pytest.mark.parametrize("labels", [[[3]], [[-1]], [[254]]])
def test_colour_rejects_labels_without_a_colour(labels):
    with pytest.raises(ValueError, match=r"labels: got values .* 0\.\.2 or 255"):
        colour(np.array(labels), PALETTE)


def test_colour_names_wrong_shapes():
    with pytest.raises(ValueError, match="labels: got shape"):
        colour(np.zeros((2, 2, 1), np.uint8), PALETTE)
    with pytest.raises(ValueError, match="palette: got float64"):
        colour(np.zeros((2, 2), np.uint8), PALETTE.astype(float))


def test_overlay_in_bands_is_that_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (23, 17, 3), dtype=np.uint8)
    drawn = rng.integers(0, 3, (23, 17), dtype=np.uint8)
    whole = overlay(image, drawn, PALETTE)
    for band in (1, 40, 17 * 22):
        monkeypatch.setattr(labels_module, "_BAND", band)
        np.testing.assert_array_equal(overlay(image, drawn, PALETTE), whole)


def test_overlay_mixes_and_leaves_ignored_pixels_and_the_input_alone():
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 0, 255]], np.uint8)
    mixed = overlay(image, labels, PALETTE, alpha=0.5)
    np.testing.assert_array_equal(mixed[0, 0], [178, 50, 50])
    assert (mixed[0, 1] < mixed[0, 0]).all(), "a border pixel is darker"
    np.testing.assert_array_equal(mixed[0, 2], [100, 100, 100])
    assert (image == 100).all()
    plain = overlay(image[:, :1], labels[:, :1], PALETTE, alpha=0)
    np.testing.assert_array_equal(plain, image[:, :1])


def test_overlay_names_wrong_arguments():
    labels = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match=r"image: got uint8 \(2, 3, 3\)"):
        overlay(np.zeros((2, 3, 3), np.uint8), labels, PALETTE)
    with pytest.raises(ValueError, match="alpha: got 2"):
        overlay(np.zeros((2, 2, 3), np.uint8), labels, PALETTE, alpha=2)


def test_legend_shows_every_colour_and_grows_with_the_classes():
    picture = legend(CLASSES, PALETTE)
    seen = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert {tuple(rgb) for rgb in PALETTE} <= seen
    assert legend(CLASSES[:1], PALETTE[:1]).shape[0] < picture.shape[0]
    with pytest.raises(ValueError, match="classes: got 2 names"):
        legend(CLASSES[:2], PALETTE)


def test_picture_grid_holds_pictures_of_any_size(tmp_path):
    row = [np.full((40, 60, 3), PALETTE[0]), np.full((1, 1, 3), PALETTE[1])]
    tall = [np.full((90, 30, 3), PALETTE[2])] * 2
    path = tmp_path / "grid.png"
    picture_grid([row, tall], ["image", "truth"], path)
    written = cv2.imread(str(path))[..., ::-1]
    seen = {tuple(pixel) for pixel in written.reshape(-1, 3)}
    assert {tuple(rgb) for rgb in PALETTE} <= seen
    with_legend = tmp_path / "legend.png"
    picture_grid([row, tall], ["image", "truth"], with_legend, CLASSES, PALETTE)
    legended = cv2.imread(str(with_legend))[..., ::-1]
    below = legended[written.shape[0] :]  # which holds no more than the legend
    assert {tuple(rgb) for rgb in PALETTE} <= {tuple(pixel) for pixel in below.reshape(-1, 3)}


def test_picture_grid_names_the_row_that_does_not_fit(tmp_path):
    picture = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"rows\[1\]: got 1 pictures, must be 2"):
        picture_grid([[picture, picture], [picture]], ["a", "b"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="rows: got none, must be at least one row"):
        picture_grid([], ["a"], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
