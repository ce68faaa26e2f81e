"""Data sets of other libraries: what their items may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepcrf_ext.data import LabelledPairs
from deepcrf_ext.errors import InputError

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
LABELS = np.array([[0, 1, 1, 0], [1, 0, 255, 0]], np.uint8)


def read(image: Any, labels: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    sample = LabelledPairs([(image, labels)], ("a", "b"), **options)[0]  # type: ignore[arg-type]
    return sample.image, sample.labels


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        Image.fromarray(IMAGE),
        torch.from_numpy(IMAGE).permute(2, 0, 1),
        torch.from_numpy(IMAGE).permute(2, 0, 1) / 255,
        (torch.from_numpy(IMAGE).permute(2, 0, 1) / 255).requires_grad_(),
        (torch.from_numpy(IMAGE).permute(2, 0, 1) / 255).bfloat16(),
        (torch.from_numpy(IMAGE).permute(2, 0, 1) / 255).half(),
    ],
    ids=["array", "PIL", "uint8", "float", "gradient", "bfloat16", "float16"],
)
def test_images(image: Any) -> None:
    found, _ = read(image, LABELS)
    np.testing.assert_array_equal(found, IMAGE)


def test_a_data_set_of_pairs_is_a_split() -> None:
    dataset = LabelledPairs([(IMAGE, Image.fromarray(LABELS))] * 2, ["a", "b"])
    assert (len(dataset), dataset.classes, dataset.palette.shape) == (2, ("a", "b"), (2, 3))
    assert [sample.name for sample in dataset] == ["0", "1"]
    for sample in dataset:
        np.testing.assert_array_equal(sample.labels, LABELS)
        assert sample.image.dtype == sample.labels.dtype == np.uint8
    with pytest.raises(ValueError, match=r"palette: got float64 \[2, 3\]"):
        LabelledPairs([(IMAGE, LABELS)], ["a", "b"], np.zeros((2, 3)))


def test_grey_images() -> None:
    grey = torch.tensor([[[0.0, 1.0], [0.2, 0.4]]])  # [1, H, W]
    found, _ = read(grey, np.zeros((2, 2), np.uint8))
    assert found.tolist() == [[[0] * 3, [255] * 3], [[51] * 3, [102] * 3]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    labels = torch.from_numpy(LABELS).long()
    labels[labels == 255] = 100
    for given in (labels.to(dtype), labels.to(dtype)[None], labels.to(dtype).numpy()):
        np.testing.assert_array_equal(read(IMAGE, given, ignore=100)[1], LABELS)
    if dtype.is_signed:
        labels[labels == 100] = -1
        np.testing.assert_array_equal(read(IMAGE, labels.to(dtype), ignore=-1)[1], LABELS)


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (
            IMAGE,
            LABELS[:, :3],
            r"item 0: labels are \[2, 3\], must be of the image's size, \[2, 4\]",
        ),
        (IMAGE, LABELS + 7, "item 0: label 7 must be 0..1 or 255"),
        (IMAGE, LABELS.astype(np.float32), "item 0: labels are float32"),
        (torch.full((3, 2, 4), torch.nan), LABELS, "item 0: image holds nan..nan, must be 0..1"),
        (torch.full((3, 2, 4), 7.0), LABELS, "item 0: image holds 7..7, must be 0..1"),
        (IMAGE.astype(np.float32), LABELS, "item 0: image is float32"),
        (np.zeros((2, 4, 4), np.uint8), LABELS, r"item 0: image is uint8 \[2, 4, 4\]"),
    ],
)
def test_what_cannot_be_used_is_named(image: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(image, labels)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(IMAGE, LABELS)])


@pytest.mark.parametrize("dataset", [Stream(), iter([(IMAGE, LABELS)])])
def test_data_sets_without_a_length_are_refused(dataset: Any) -> None:
    with pytest.raises(TypeError, match=r"dataset: got \w+, must have a length and items by index"):
        LabelledPairs(dataset, ("a", "b"))


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ([str(n) for n in range(256)], ValueError, "256 classes; must be 1..255"),
        (("a", "a"), ValueError, "'a' is there twice"),
        ((1, 2), ValueError, "1 cannot be the name of a class"),
        ("ab", TypeError, "classes: got 'ab', must be a sequence of names"),
    ],
)
def test_classes_that_labels_cannot_tell(classes: Any, error: type, message: str) -> None:
    """Label 256 would be 0 in uint8."""
    with pytest.raises(error, match=message):
        LabelledPairs([(IMAGE, LABELS)], classes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": IMAGE, "label": LABELS}, "item 0: got dict of image, label, must be"),
        ((IMAGE, LABELS, "a.png"), r"item 0: got tuple, must be \(image, labels\)"),
        (("a.png", LABELS), "item 0: image is <U5"),
    ],
)
def test_items_that_are_no_pairs_are_named(item: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelledPairs([item], ("a", "b"))[0]  # type: ignore[arg-type]
