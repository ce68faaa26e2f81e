"""Data sets of other libraries: what their items may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepcrf_ext.data import LabelledPairs

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
    ],
)
def test_what_cannot_be_used_is_named(image: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(image, labels)
