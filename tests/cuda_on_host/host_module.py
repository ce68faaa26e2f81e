"""Builds the modules whose CUDA sources run on the host, and calls them under the shim's checks."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from host_build import build_module
from torch import Tensor

from deepcrf_ext.ops import _backend

SOURCE = Path(__file__).resolve().parent
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}


class OrderDependence(AssertionError):
    """A kernel's result depends on the order in which its threads ran."""


class CheckedModule:
    """A module built over the shim, its functions called under all of its checks.

    Every call may touch the tensors among its arguments, what functions among them allocate, and no
    other memory. It runs once in each of `orders`, from the same memory, and must leave the same
    bits each time. A workspace given by keyword alone may come out otherwise: where the slots of a
    hash table lie depends on the order, what is read from it must not.
    """

    def __init__(self, module: ModuleType, orders: Sequence[str] = ("forward", "reverse")) -> None:
        self._module = module
        self._library = ctypes.CDLL(str(module.__file__))
        self._orders = orders

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return functools.partial(self._call, value) if callable(value) else value

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = dict(_named_tensors([*enumerate(args), *kwargs.items()]))
        before = {name: tensor.clone() for name, tensor in given.items()}
        first: dict[str, Tensor] = {}
        result = None
        for order in self._orders:
            for name, tensor in given.items():
                tensor.data.copy_(before[name])  # unseen by autograd: inputs stay as they were
            tensors = dict(given)
            self._set_global_memory(tensors)
            self._library.cuda_on_host_set_order(ORDERS[order], ctypes.c_uint64(0))
            result = function(*[self._watched(value, tensors) for value in args], **kwargs)
            if not first:
                first = {name: tensor.clone() for name, tensor in tensors.items()}
            for name, tensor in tensors.items():
                if name == "argument workspace":
                    continue
                if not torch.equal(_bytes(tensor), _bytes(first[name])):
                    raise OrderDependence(
                        f"{function.__name__}: {name} differs between the thread orders "
                        f"{self._orders[0]} and {order}"
                    )
        return result

    def _watched(self, argument: Any, tensors: dict[str, Tensor]) -> Any:
        """The argument; a function that allocates with what it allocates added to the tensors."""
        if not callable(argument) or isinstance(argument, Tensor):
            return argument

        def allocate(size: int) -> Tensor:
            memory: Tensor = argument(size)
            tensors[f"scratch memory {len(tensors)}"] = memory
            self._set_global_memory(tensors)
            return memory

        return allocate

    def _set_global_memory(self, tensors: dict[str, Tensor]) -> None:
        count = len(tensors)
        addresses = (ctypes.c_uint64 * count)(*(t.data_ptr() for t in tensors.values()))
        sizes = (ctypes.c_uint64 * count)(*(t.nbytes for t in tensors.values()))
        labels = (ctypes.c_char_p * count)(
            *(
                f"{name} ({str(t.dtype).removeprefix('torch.')}{list(t.shape)})".encode()
                for name, t in tensors.items()
            )
        )
        self._library.cuda_on_host_set_global_memory(
            addresses, sizes, labels, ctypes.c_uint64(count)
        )


def _named_tensors(arguments: Sequence[tuple[object, Any]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among arguments, in lists and tuples too, with a name each; no empty ones."""
    for key, value in arguments:
        if isinstance(value, Tensor) and value.numel() > 0:
            yield f"argument {key}", value
        elif isinstance(value, (list, tuple)):
            yield from _named_tensors([(f"{key}[{i}]", item) for i, item in enumerate(value)])


def _bytes(tensor: Tensor) -> Tensor:
    values = tensor.detach().clone(memory_format=torch.contiguous_format)
    return values.view(-1).view(torch.uint8)  # of one element, which may have come with stride 0


@functools.cache
def load(name: str) -> CheckedModule:
    """Build and import `kernels_on_host` or `_C_cuda_on_host`."""
    return CheckedModule(build_module(SOURCE, name))


@contextmanager
def cuda_on_host() -> Iterator[CheckedModule]:
    """A context in which the operators launch the project's CUDA kernels, on CPU tensors.

    New tensors hold NaN, or the largest integer, until they are written.
    """
    module = load("_C_cuda_on_host")
    former = torch.are_deterministic_algorithms_enabled()
    former_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    with patch.object(_backend, "native", lambda: module):
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield module
        finally:
            torch.use_deterministic_algorithms(former, warn_only=former_warn)
