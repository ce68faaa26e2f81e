"""For tests of one's own data: folders of images and masks, as made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcrf_ext.config import DataSource
from deepcrf_ext.data import open_dataset
from deepcrf_ext.errors import InputError

LABELS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
"""Of every mask that `lay` writes."""
CLASSES = ("ground", "tree", "sky")


def write(path: Path, array: np.ndarray) -> Path:
    """An image file of an array, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def add_pair(image: Path, mask: Path, labels: np.ndarray) -> None:
    """An image whose brightness follows its labels, and the mask of these labels."""
    height, width = labels.shape[:2]
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3), np.uint8)
    grey = labels if labels.ndim == 2 else labels.sum(2) // 3
    write(image, noise + (grey[..., None] // 2).astype(np.uint8))
    write(mask, labels)


def source(**settings: object) -> DataSource:
    """The settings of a folder of images and masks."""
    return DataSource("folder", **settings)  # type: ignore[arg-type]


def lay(root: Path, *pairs: tuple[str, str]) -> Path:
    """A folder with pairs of an image and a mask, by their paths below it."""
    for image, mask in pairs:
        add_pair(root / image, root / mask, LABELS)
    return root


def names(root: Path, split: str = "train", **settings: object) -> list[str]:
    """Names of the samples of a folder that `lay` has filled, in their order."""
    dataset = open_dataset(source(root=root, classes=CLASSES, **settings), split=split)
    for sample in dataset:
        np.testing.assert_array_equal(sample.labels, LABELS)
        assert sample.image.shape == (2, 3, 3)
    return [sample.name for sample in dataset]


def error(root: Path, split: str = "train", **settings: object) -> str:
    """The line that says why a folder cannot be opened."""
    with pytest.raises(InputError) as caught:
        open_dataset(source(root=root, **{"classes": CLASSES, **settings}), split=split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_blobs(
    root: Path, foreground: object, background: object = 0, splits: Sequence[str] = ("train", "val")
) -> Path:
    """A small set that can be learnt: bright squares on a dark ground, masks of two values or
    colours; images in sub-folders with spaces and accents in their names."""
    random = np.random.default_rng(0)
    for split in splits:
        for index in range(6):
            inside = np.zeros((40, 56), bool)
            top, left = random.integers(2, 18, 2)
            inside[top : top + 20, left : left + 24] = True
            noise = random.integers(0, 40, (40, 56, 3))
            image = (noise + 160 * inside[..., None]).astype(np.uint8)
            values = np.array([background, foreground], np.uint8)
            name = f"série {index % 2}/bild {index}"
            write(root / "images" / split / f"{name}.jpg", image)
            write(root / "masks" / split / f"{name}.png", values[inside.astype(int)])
    return root
