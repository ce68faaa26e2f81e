"""Processes that load images, and what ends them."""

from __future__ import annotations

import multiprocessing
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from deepcrf_ext.config import DataConfig, TrainConfig
from deepcrf_ext.data import Sample, SegmentationDataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.training.loader import epoch_batches

CONFIG = TrainConfig(data=DataConfig(crop=(8, 8), workers=2), batch_size=1)


class Images(SegmentationDataset):
    """Sixteen images, of which the last that is asked for may be damaged."""

    classes, palette = ("a", "b"), np.zeros((2, 3), np.uint8)

    def __init__(self, damaged: int | None) -> None:
        self.damaged = damaged

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Sample:
        if index == self.damaged:
            raise InputError("x.png: cannot be read")
        return Sample(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), str(index))


def test_order_and_augmentation_are_of_the_seed_the_epoch_and_the_image() -> None:
    def transform(
        sample: Sample, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((3, 1, 1), float(sample.name)), torch.from_numpy(
            generator.integers(2**60, size=(1, 1))
        )

    def drawn(seed: int, epoch: int) -> dict[int, int]:
        """The number that each image draws, in their order."""
        config = replace(CONFIG, data=DataConfig(workers=0), seed=seed)
        batches = epoch_batches(Images(None), config, epoch, transform=transform)
        return {int(images[0, 0, 0, 0]): int(labels) for images, labels in batches}

    first = drawn(3, 5)
    assert sorted(first) == list(range(16))
    assert list(drawn(3, 5).items()) == list(first.items())
    assert len(set(first.values())) == 16
    for other in (drawn(4, 5), drawn(3, 6), drawn(5, 3)):
        assert list(other) != list(first)
        assert not set(other.values()) & set(first.values())


def test_no_process_outlives_an_image_that_cannot_be_read() -> None:
    """The error, while it is held, holds on to them; the program would wait for them at its end."""
    with pytest.raises(InputError, match=r"^x\.png: cannot be read$") as caught:
        list(epoch_batches(Images(3), CONFIG, 0))
    assert multiprocessing.active_children() == []
    assert caught.value.__cause__ is not None


def test_no_process_outlives_the_work_on_a_batch() -> None:
    def work() -> None:
        with closing(epoch_batches(Images(None), CONFIG, 0)) as batches:
            next(batches)
            assert multiprocessing.active_children()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as caught:
        work()
    assert multiprocessing.active_children() == []
    assert caught.traceback
