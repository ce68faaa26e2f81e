"""The way from Python into the compiled extension."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from deepcrf_ext.ops import _forks  # noqa: F401 - for what it does at every fork

INTERFACE = 4
"""What these sources call: `kInterface` of the extension (csrc/bindings/module.cpp) is the same."""


@functools.cache
def native() -> ModuleType:
    """The compiled module `deepcrf_ext._C`.

    Operators call it as `_backend.native()`, so that a test can put another build in its place.

    Raises:
        ImportError: The extension was not built, cannot be loaded, or was built from other sources.
    """
    # torch is imported above, first: its OpenMP runtime is then the one the extension uses.
    try:
        module = importlib.import_module("deepcrf_ext._C")
    except ImportError as error:
        raise ImportError(
            f"the compiled extension deepcrf_ext._C cannot be loaded ({error}); build it with 'pip "
            "install -e .' in the checkout, or leave the checkout's folder if 'pip install .' did"
        ) from error
    interface = getattr(module, "interface", 0)
    if interface != INTERFACE:
        raise ImportError(
            f"the compiled extension {module.__file__} was built from other sources (its interface "
            f"is {interface}, must be {INTERFACE}); rebuild it with 'pip install -e .' in the "
            "checkout"
        )
    return module


def launch_args(tensor: torch.Tensor) -> tuple[int, int]:
    """`num_threads` and `stream`, the last two arguments of every native call.

    Args:
        tensor: Any tensor of the call; its device decides.

    Returns:
        torch's number of CPU threads, and the address of its current CUDA stream (0 on the CPU).
    """
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
    return torch.get_num_threads(), stream


def uses_cuda_kernels(tensor: torch.Tensor) -> bool:
    """Whether operators on this tensor run CUDA kernels; in tests these may run on the host."""
    return tensor.is_cuda or native().cuda_on_host


def has_tiles() -> bool:
    """Whether the kernels of the CPU multiply by matrix tiles (Intel AMX) what may be bfloat16."""
    return bool(native().cpu_isa() == "amx")


def allocator(tensor: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """What makes the scratch memory of a native call beside the tensor: of a number of bytes, uint8
    [bytes], uninitialised. The kernels of the CPU do not call it."""
    return functools.partial(torch.empty, dtype=torch.uint8, device=tensor.device)


def float32_precision(on_cuda: bool) -> str:
    """How exact torch wants products of float32 now: "highest", "high" or "medium"."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by the newer `fp32_precision`, a backend at a time
        backend: Any = torch.backends.cuda if on_cuda else torch.backends.mkldnn
        return {"tf32": "high", "bf16": "medium"}.get(backend.matmul.fp32_precision, "highest")


def product_precision(potential: torch.Tensor, exact: bool = False) -> str:
    """How exact products of a potential are to be now, of which this is a tensor.

    Of float32 what torch says. On a CPU with matrix tiles an operand is one bfloat16 under "medium"
    and the sum of two, which hold a float16, under "high".

    exact: "high" at least.
    """
    of_halves = {torch.bfloat16: "medium", torch.float16: "high"}
    precision = of_halves.get(potential.dtype) or float32_precision(uses_cuda_kernels(potential))
    return "high" if exact and precision == "medium" else precision
