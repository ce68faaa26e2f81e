"""What the operator tests run on: every implementation of the public functions, on every device.

A further backend is one more `Target` in `OPERATOR_TARGETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from cuda_on_host.host_module import cuda_on_host

import deepcrf_ext
import deepcrf_ext.reference


@dataclass(frozen=True)
class Target:
    """One implementation on one device.

    `functions` holds the public functions as attributes; `activate` makes a context in which
    they run on this target.
    """

    name: str
    functions: Any
    device: torch.device
    activate: Callable[[], AbstractContextManager[Any]] = nullcontext


OPERATOR_TARGETS = [
    Target("cpu", deepcrf_ext, torch.device("cpu")),
    Target("cuda_on_host", deepcrf_ext, torch.device("cpu"), cuda_on_host),
]
if torch.cuda.is_available():
    OPERATOR_TARGETS.append(Target("cuda", deepcrf_ext, torch.device("cuda", 0)))

TARGETS = [Target("reference", deepcrf_ext.reference, torch.device("cpu")), *OPERATOR_TARGETS]
