"""The extension with the sources for matrix tiles compiled over an emulation of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from host_build import build_module

from deepcrf_ext.ops import _backend


@functools.cache
def load() -> ModuleType:
    """Build and import `_C_tiles_on_host`."""
    return build_module(Path(__file__).resolve().parent, "_C_tiles_on_host")


@contextmanager
def tiles_on_host() -> Iterator[ModuleType]:
    """A context in which the operators multiply bfloat16 by emulated tiles."""
    module = load()
    with patch.object(_backend, "native", lambda: module):
        yield module
