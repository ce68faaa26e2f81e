"""Data sets of one's own in Python: registered by name, or any torch data set of pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from deepcrf_ext.data import DATASETS, LabelledPairs, open_dataset, register_dataset, registry
from deepcrf_ext.errors import InputError

IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
LABELS = np.array([[0, 1, 255], [1, 0, 0]], np.uint8)


class Pairs(Dataset):
    def __init__(self, image: object = IMAGE, labels: object = LABELS) -> None:
        self.pair = image, labels

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> object:
        return self.pair


@pytest.fixture
def name() -> Iterator[str]:
    yield "mine"
    DATASETS.pop("mine", None)
    registry._FACTORIES.pop("mine", None)


def test_registered_data_sets_are_opened_by_name(name: str) -> None:
    calls = []

    def factory(root, split):
        calls.append((root, split))
        return LabelledPairs(Pairs(), ("a", "b"))

    register_dataset(name, factory, splits=("train",))
    dataset = open_dataset(name, "folder", "train")
    assert dataset.classes == ("a", "b")
    assert [(str(root), split) for root, split in calls] == [("folder", "train")]
    with pytest.raises(InputError, match="mine has the splits train"):
        open_dataset(name, None, "val")
    register_dataset(name, factory)
    open_dataset(name, None, "anything")
    assert calls[-1] == (None, "anything")
    with pytest.raises(ValueError, match="name: got 'voc', must not be"):
        register_dataset("voc", factory)


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        Image.fromarray(IMAGE),
        torch.from_numpy(IMAGE).permute(2, 0, 1),
        torch.from_numpy(IMAGE).permute(2, 0, 1) / 255,
    ],
)
@pytest.mark.parametrize(
    "labels", [LABELS, Image.fromarray(LABELS), torch.from_numpy(LABELS)[None].long()]
)
def test_pairs_of_any_kind(image, labels) -> None:
    dataset = LabelledPairs(Pairs(image, labels), ["a", "b"])
    assert (len(dataset), dataset.classes, dataset.palette.shape) == (2, ("a", "b"), (2, 3))
    samples = list(dataset)
    assert [sample.name for sample in samples] == ["0", "1"]
    for sample in samples:
        np.testing.assert_array_equal(sample.image, IMAGE)
        np.testing.assert_array_equal(sample.labels, LABELS)
        assert sample.image.dtype == sample.labels.dtype == np.uint8


def test_grey_images_and_another_ignored_label() -> None:
    dataset = LabelledPairs(Pairs(torch.zeros(1, 2, 3), np.full((2, 3), -1)), ["a"], ignore=-1)
    assert dataset[0].image.shape == (2, 3, 3)
    assert np.all(dataset[0].labels == 255)


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (torch.full((3, 2, 3), 7.0), LABELS, r"image holds 7\.\.7, must be 0\.\.1"),
        (np.zeros((2, 3, 4), np.uint8), LABELS, r"image is uint8 \[2, 3, 4\]"),
        (IMAGE, np.zeros((2, 3)), r"labels are float64 \[2, 3\]"),
        (IMAGE, np.full((2, 3), 2), r"label 2 must be 0\.\.1 or 255"),
    ],
)
def test_what_is_no_pair(image, labels, message: str) -> None:
    with pytest.raises(ValueError, match=f"item 0: {message}"):
        LabelledPairs(Pairs(image, labels), ["a", "b"])[0]


def test_palettes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"palette: got float64 \[2, 3\]"):
        LabelledPairs(Pairs(), ["a", "b"], np.zeros((2, 3)))
