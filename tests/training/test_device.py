"""The choice of a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepcrf_ext.config import DataConfig, TrainConfig
from deepcrf_ext.data import LabelledPairs
from deepcrf_ext.errors import InputError
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.training.loader import epoch_batches


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs; holds what was made the current one."""
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return made


@pytest.mark.parametrize(
    ("name", "local_rank", "index"),
    [("auto", None, 0), ("cuda", None, 0), ("cuda:1", None, 1), ("cuda", "1", 1), ("auto", "1", 1)],
)
def test_a_gpu_becomes_the_current_one(
    current: list[torch.device],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    local_rank: str | None,
    index: int,
) -> None:
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert choose_device(name) == torch.device("cuda", index)
    assert current == [torch.device("cuda", index)]


@pytest.mark.parametrize("name", ["cuda:2", "cuda"])
def test_a_gpu_that_is_not_there_is_an_error(
    current: list[torch.device], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="got 'cuda:2', must be one of the 2 GPUs"):
        choose_device(name)
    assert not current


def test_cpu_makes_nothing_current(current: list[torch.device]) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert not current


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_loaded_whatever_device_is_the_default(workers: int) -> None:
    pair = np.zeros((8, 9, 3), np.uint8), np.ones((8, 9), np.uint8)
    dataset = LabelledPairs([pair] * 4, ("a", "b"))  # type: ignore[arg-type]
    config = TrainConfig(data=DataConfig(crop=(8, 8), workers=workers), batch_size=2)
    with torch.device("meta"):
        batches = list(epoch_batches(dataset, config, epoch=0))
    assert [images.shape for images, _ in batches] == [(2, 3, 8, 8)] * 2
    assert {tensor.device.type for batch in batches for tensor in batch} == {"cpu"}
