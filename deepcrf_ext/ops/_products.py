"""Matrix products of the vendor's library between the CUDA kernels of an operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def whole_sums(device: torch.device) -> Iterator[None]:
    """Products keep their dtype, also under autocast, and sum in float32 to the end.

    By default torch lets the library add the parts of a split half-precision product in that dtype.
    """
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    matmul = torch.backends.cuda.matmul
    former = [getattr(matmul, name) for name in names]
    with torch.autocast(device.type, enabled=False):
        try:
            for name in names:
                setattr(matmul, name, False)
            yield
        finally:
            for name, value in zip(names, former, strict=True):
                setattr(matmul, name, value)
