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


RESULTS = (deepcrf_ext.InputError, crf.Calibration)  # which nobody makes
PUBLIC = {
    name: thing
    for module in (deepcrf_ext, crf)
    for name in module.__all__
    if callable(thing := getattr(module, name)) and thing not in RESULTS
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs_by_itself(name: str) -> None:
    """Copied as it is, with nothing imported before."""
    example = doctest.DocTestParser().get_doctest(str(PUBLIC[name].__doc__), {}, name, None, None)
    assert len(example.examples) > 0
    assert doctest.DocTestRunner().run(example).failed == 0
