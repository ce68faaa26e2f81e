"""The examples of the layers run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from deepcrf_ext import nn as crf

MODULES = [module.name for module in pkgutil.iter_modules(crf.__path__, f"{crf.__name__}.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", [name for name in crf.__all__ if name[0].isupper()])
def test_every_layer_has_an_example(name: str) -> None:
    thing = getattr(crf, name)
    if hasattr(thing, "forward"):
        assert ">>> " in thing.__doc__
