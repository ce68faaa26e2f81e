"""Matrix products of the vendor's library between the CUDA kernels of an operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

ROW_MULTIPLE = 8
"""Rows of two-byte elements then begin at multiples of 16 bytes, as the fast products need."""


def padded(size: int) -> int:
    """The length of rows that hold `size` elements."""
    return -(-size // ROW_MULTIPLE) * ROW_MULTIPLE


_MM_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()  # torch 2.8 and later


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`, not rounded before where the library can leave it so."""
    if a.is_cuda and a.dtype != dtype and _MM_HAS_OUT_DTYPE:
        return torch.mm(a, b, out_dtype=dtype)
    if a.dtype == torch.float16:  # a sum over edges may be larger than it holds
        return a.to(dtype) @ b.to(dtype)
    return (a @ b).to(dtype)


class _WholeHalves:
    """Keeps torch from letting the library add the parts of a split half-precision product in that
    dtype, as it does by default.

    The settings are the process's: the first thread that comes keeps them, the last brings them
    back. Each is whether halves may be added as halves and, where torch tells, split at all.
    """

    NAMES = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")

    def __init__(self) -> None:
        self._lock = Lock()
        self._num_threads = 0
        self._former: list[tuple[bool, ...]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._num_threads == 0:
                self._former = [self._setting(name) for name in self.NAMES]
                self._set([(False, *may_split) for _, *may_split in self._former])
            self._num_threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_threads -= 1
            if self._num_threads == 0:
                self._set(self._former)

    @staticmethod
    def _setting(name: str) -> tuple[bool, ...]:
        matmul, both = torch.backends.cuda.matmul, (name, f"{name}_split_k")
        return tuple(getattr(matmul, known) for known in both if hasattr(matmul, known))

    def _set(self, settings: Sequence[tuple[bool, ...]]) -> None:
        for name, setting in zip(self.NAMES, settings, strict=True):
            value = setting if len(setting) > 1 else setting[0]
            setattr(torch.backends.cuda.matmul, name, value)


_WHOLE_HALVES = _WholeHalves()


@contextmanager
def whole_sums(device: torch.device) -> Iterator[None]:
    """Products keep their dtype, also under autocast, and sum in float32 to the end."""
    with torch.autocast(device.type, enabled=False), _WHOLE_HALVES:
        yield
