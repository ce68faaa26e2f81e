"""The examples in docstrings run, and public layers have some."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import deepcrf_ext
from deepcrf_ext import nn as crf

ROOT = Path(deepcrf_ext.__file__).parent
MODULES = [
    ".".join(("deepcrf_ext", *path.relative_to(ROOT).with_suffix("").parts))
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0 < result.attempted


@pytest.mark.parametrize("name", [name for name in crf.__all__ if name[0].isupper()])
def test_every_layer_has_an_example(name: str) -> None:
    thing = getattr(crf, name)
    if hasattr(thing, "forward"):
        assert ">>> " in thing.__doc__
