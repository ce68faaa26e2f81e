"""Reading samples ahead of their use."""

from __future__ import annotations

import pytest
import torch

from deepcrf_ext.data import Sample, Scenes, SegmentationDataset, to_tensors
from deepcrf_ext.data.read_ahead import read_ahead
from deepcrf_ext.errors import InputError


class Damaged(SegmentationDataset):
    """Scenes of which one cannot be read; notes which were."""

    def __init__(self) -> None:
        self.scenes = Scenes("val")
        self.read: list[int] = []

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        if index == 3:
            raise InputError("3 is damaged")
        return self.scenes[index]


@pytest.mark.parametrize("indices", [[], [2], range(0, 6, 2), [1, 0, 1]])
def test_samples_come_in_order(indices):
    dataset = Damaged()
    pairs = list(read_ahead(dataset, indices))
    assert dataset.read == list(indices)
    for (image, labels), index in zip(pairs, indices, strict=True):
        expected = to_tensors(dataset.scenes[index])
        torch.testing.assert_close((image, labels), expected, rtol=0, atol=0)


def test_an_error_comes_at_its_sample():
    dataset, seen = Damaged(), []
    with pytest.raises(InputError, match="3 is damaged"):  # noqa: PT012
        for image, _ in read_ahead(dataset, range(6)):
            seen.append(image)
    assert len(seen) == 3


def test_one_sample_ahead_and_no_more():
    dataset = Damaged()
    samples = read_ahead(dataset, range(3))
    next(samples)
    next(samples)
    samples.close()  # waits for the one being read
    assert dataset.read == [0, 1, 2]
