"""Values on a device that later calls read again, on any stream.

A CUDA kernel runs some time after its call, on the stream of that call. So what is kept must be
whole before another stream reads it, must not be freed while one still may, and must not come from
a CUDA graph under capture, which writes at every replay and not before.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from threading import Lock
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from deepcrf_ext.ops._func_transforms import outside_transforms

Value = TypeVar("Value")


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of a device captures a CUDA graph, where nothing may wait."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def wait_until_written(device: torch.device) -> None:
    """Waits for the current stream of a device: any stream may then read what it wrote."""
    if device.type == "cuda" and not is_capturing(device):
        torch.cuda.current_stream(device).synchronize()


def keep_for_stream(tensors: Iterable[Tensor]) -> None:
    """Keeps memory that another stream may own from reuse while the current one may read it."""
    for tensor in tensors:
        if tensor.is_cuda and not torch.compiler.is_compiling():
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


class DeviceCache(Generic[Value]):
    """The values used last, as many as `max_bytes` hold, but always the newest.

    Threads may share it, forked processes inherit it, and a value may be read on any CUDA stream,
    in a captured CUDA graph too: such a value is kept for good, as replays read it unseen.

    Args:
        max_bytes: of the tensors of all values together.
        tensors_of: the tensors that a value is made of.
    """

    def __init__(self, max_bytes: int, tensors_of: Callable[[Value], Sequence[Tensor]]) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._tensors_of = tensors_of
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._captured: dict[int, Value] = {}
        self._lock = Lock()
        if hasattr(os, "register_at_fork"):  # a child must not find the lock held
            os.register_at_fork(
                before=self._lock.acquire,
                after_in_parent=self._lock.release,
                after_in_child=self._lock.release,
            )

    def __len__(self) -> int:
        return len(self._values)

    def get_or_build(
        self, key: Hashable, device: torch.device, build: Callable[[], Value]
    ) -> Value:
        """The value of a key, built on the device where it is not kept.

        Where tensors are fake, of shapes alone, it is built and not kept."""
        if isinstance(torch.empty(0), FakeTensor):
            return build()
        value = self.get(key)
        if value is None:
            # Training may be the next to use it, and code outside of a transform.
            with torch.inference_mode(False), outside_transforms():
                value = build()
            if not is_capturing(device):
                wait_until_written(device)
                self.put(key, value)
        return value

    def get(self, key: Hashable) -> Value | None:
        """The value of a key, or None."""
        with self._lock:
            value = self._values.get(key)
            if value is None:
                return None
            self._values.move_to_end(key)
            tensors = self._tensors_of(value)
            if is_capturing(tensors[0].device):
                self._captured[id(value)] = value
            else:
                keep_for_stream(tensors)
            return value

    def put(self, key: Hashable, value: Value) -> None:
        """Adds a value, written whole by now, and lets the ones unused longest go."""
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.num_bytes += self._num_bytes(value)
            while self.num_bytes > self.max_bytes and len(self._values) > 1:
                self.num_bytes -= self._num_bytes(self._values.popitem(last=False)[1])

    def _num_bytes(self, value: Value) -> int:
        return sum(tensor.nbytes for tensor in self._tensors_of(value))
