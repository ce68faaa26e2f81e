"""Whole samples one after another, each read while the one before is being used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from deepcrf_ext.data.base import SegmentationDataset
from deepcrf_ext.data.transforms import to_tensors

Pair = tuple[Tensor, Tensor]


def read_ahead(dataset: SegmentationDataset, indices: Iterable[int]) -> Iterator[Pair]:
    """`to_tensors` of the samples with these indices, in order.

    Raises what reading a sample raises, at its turn.
    """

    def read(index: int) -> Pair:
        return to_tensors(dataset[index])

    with ThreadPoolExecutor(1) as thread:
        following: Future[Pair] | None = None
        for index in indices:
            current, following = following, thread.submit(read, index)
            if current is not None:
                yield current.result()
        if following is not None:
            yield following.result()
