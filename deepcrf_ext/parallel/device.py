"""Where to compute, and in which precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch

from deepcrf_ext.constants import Amp
from deepcrf_ext.errors import InputError


def choose_device(name: str) -> torch.device:
    """The device of a setting: "auto", "cpu", "cuda", "cuda:1". Raises InputError if missing.

    In a process that torchrun started, "auto" and "cuda" are the GPU of its number. A GPU becomes
    the current one, so that the process takes no memory of another.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"device: got {name!r}, must be auto, cpu, cuda or cuda:<number>"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: got {name!r}, must be auto, cpu, cuda or cuda:<number>")
    if device.type == "cpu":
        return device
    device = torch.device("cuda", device.index or 0)
    if device.index >= torch.cuda.device_count():
        raise InputError(
            f"device: got {name!r}, must be one of the {torch.cuda.device_count()} GPUs here"
        )
    torch.cuda.set_device(device)
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are faster than in float32 on a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def autocast(device: torch.device, amp: Amp) -> AbstractContextManager[None]:
    """Autocast to what `amp` says: bfloat16, float16 or neither."""
    on = has_fast_bfloat16(device) if amp is None else bool(amp)
    dtype = torch.float16 if amp == "float16" else torch.bfloat16
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=dtype, enabled=on)
    return context
