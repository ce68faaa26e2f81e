"""Arrays of what a model says, and what is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepcrf_ext.data.predictions import read_probabilities
from deepcrf_ext.errors import InputError

LABELS = np.random.default_rng(0).integers(0, 4, (6, 8))


def write(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (LABELS, r"holds int64 0\.\.3, which look like labels"),
        (LABELS.astype(np.uint8), r"holds uint8 0\.\.3, which look like labels"),
        (LABELS[None].astype(np.uint8), "which look like labels"),
        (np.where(LABELS == 1, 255, LABELS).astype(np.int32), r"int32 0\.\.255, which look like"),
        (np.zeros((3, 0, 0), np.float32), "must not be empty"),
        (np.zeros((0, 6, 8), np.uint8), "must not be empty"),
        (np.full((300, 6, 8), 1 / 300, np.float32), "holds 300 classes; must be at most 256"),
        (np.full((2, 48), 0.5, np.float32), r"shape \[2, 48\]; must be \[K, h, w\]"),
        (np.full((48, 2), 0.5, np.float32), r"shape \[48, 2\]; must be \[K, h, w\]"),
        (np.full((8, 6), 0.5, np.float32), "is 6x8 pixels, but its image 8x6; transposed"),
        (np.full((2, 8, 6), 0.5, np.float32), "is 6x8 pixels, but its image 8x6; transposed"),
    ],
)
def test_what_is_no_array_of_probabilities_is_named(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_probabilities(write(tmp_path / "a.npy", array), (6, 8))


def test_images_of_one_column_or_row(tmp_path: Path) -> None:
    column = np.random.default_rng(0).dirichlet(np.ones(3), (8, 1)).astype(np.float32)  # [h, w, K]
    for image, size in ((column, (8, 1)), (column.transpose(1, 0, 2), (1, 8))):
        wanted = image.transpose(2, 0, 1)
        for array in (image, wanted):
            found = read_probabilities(write(tmp_path / "a.npy", array), size)
            np.testing.assert_array_equal(found, wanted)
        for plane in (image[..., 1], image[..., 1:2], wanted[1:2]):
            found = read_probabilities(write(tmp_path / "a.npy", plane), size)
            np.testing.assert_array_equal(found[1], wanted[1])


def test_integers_of_one_plane(tmp_path: Path) -> None:
    """0 and 1, as booleans, and fractions of 255."""
    front = LABELS > 1
    for array in (front, front.astype(np.int64), 255 * front.astype(np.uint8)):
        found = read_probabilities(write(tmp_path / "a.npy", array), (6, 8))
        np.testing.assert_array_equal(found, np.stack([~front, front]).astype(np.float32))
    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    found = read_probabilities(write(tmp_path / "a.npy", grey), (10, 10))
    np.testing.assert_allclose(found[1], grey / 255, atol=1e-6)
