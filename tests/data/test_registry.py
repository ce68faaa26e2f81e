"""Data sets of one's own, registered by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from deepcrf_ext.data import DATASETS, LabelledPairs, open_dataset, register_dataset, registry
from deepcrf_ext.errors import InputError

PAIRS = LabelledPairs([(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8))], ("a", "b"))


@pytest.fixture
def name() -> Iterator[str]:
    yield "mine"
    DATASETS.pop("mine", None)
    registry._FACTORIES.pop("mine", None)


def test_registered_data_sets_are_opened_by_name(name: str) -> None:
    calls = []

    def factory(root, split):
        calls.append((root, split))
        return PAIRS

    register_dataset(name, factory, splits=("train",))
    dataset = open_dataset(name, "folder", "train")
    assert dataset is PAIRS
    assert [(str(root), split) for root, split in calls] == [("folder", "train")]
    with pytest.raises(InputError, match="split: got .val., must be a split of mine: train"):
        open_dataset(name, None, "val")
    register_dataset(name, factory)
    open_dataset(name, None, "anything")
    assert calls[-1] == (None, "anything")
    with pytest.raises(ValueError, match="name: got 'voc', must not be"):
        register_dataset("voc", factory)
