"""What the machine can do at most: copies, products through torch, multiply-adds on registers.

The last is the peak that the tables give shares of. A C compiler (`cc`, or the environment variable
CC) builds it from multiply_add.c for the instruction set that this package's kernels use.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from harness import measure

from deepcrf_ext.ops import _backend

SOURCE = Path(__file__).with_name("multiply_add.c")
FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mfma"],
    "avx512_bf16": ["-mavx512f", "-mavx512bf16", "-mfma"],
    "amx": ["-mavx512f", "-mavx512bf16", "-mfma", "-DTILES"],
}
ROUNDS = 1 << 23
COPIED = 1 << 27  # float32 numbers
SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied
SECONDS = 0.5


def ceilings(device: torch.device, dtypes: Sequence[torch.dtype] = ()) -> dict[str, float]:
    """Bytes a second of a copy; operations a second in these dtypes, of products and, on the CPU,
    of multiply-adds."""
    found = {"copy_bytes_per_second": copy_bandwidth(device)}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        found[f"{name}_matmul_operations_per_second"] = matmul_rate(device, dtype)
        peak = multiply_add_rate(dtype) if device.type == "cpu" else None
        if peak is not None:
            found[f"{name}_multiply_add_operations_per_second"] = peak
    return found


def without_slow_bfloat16(limits: dict[str, float]) -> Callable[[str, str], str | None]:
    """A `reason_against` of `sweep`: plain PyTorch in bfloat16 takes minutes a call where its
    products are much slower than in float32, as without AVX-512."""

    def reason_against(case: str, contender: str) -> str | None:
        if contender == "deepcrf_ext" or not case.endswith("bfloat16"):
            return None
        wide = limits["float32_matmul_operations_per_second"]
        narrow = limits["bfloat16_matmul_operations_per_second"]
        return "slow bfloat16" if narrow < wide / 4 else None

    return reason_against


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written bytes counted."""
    source = torch.ones(COPIED, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    result = measure(lambda: target.copy_(source), device, SECONDS)
    return 2 * source.numel() * source.element_size() / float(result["fastest"])


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product through torch."""
    size = SIDES[device.type]
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    result = measure(lambda: a @ b, device, SECONDS)
    return 2 * size**3 / float(result["fastest"])


def multiply_add_rate(dtype: torch.dtype) -> float | None:
    """Operations a second of the CPU's multiply-adds on registers, on all threads of torch.

    None where the instruction set has no multiply-add of the dtype.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "multiply_add.so"
        flags = ["-O3", "-shared", "-fPIC", *FLAGS.get(_backend.native().cpu_isa(), ())]
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    run = getattr(library, f"{str(dtype).removeprefix('torch.')}_multiply_adds", None)
    if run is None:
        return None
    run.restype, run.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.POINTER(ctypes.c_float)]
    threads = torch.get_num_threads()

    def work(_: int) -> float:
        operations: float = run(ROUNDS, ctypes.byref(ctypes.c_float(0.5)))
        return operations

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            begin = time.perf_counter()
            operations = sum(pool.map(work, range(threads)))
            best = max(best, operations / (time.perf_counter() - begin))
    return best
