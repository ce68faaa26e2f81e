"""python -m deepcrf_ext.env."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import deepcrf_ext
from deepcrf_ext import env, refine
from deepcrf_ext.ops import _backend
from deepcrf_ext.records.environment import _loaded_openmp_runtimes


def test_command_reports_versions_and_the_extension() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "deepcrf_ext.env"],
        env={**os.environ, "DEEPCRF_CPU_ISA": "portable", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    facts = {line[:20].strip(): line[20:] for line in result.stdout.splitlines()}
    assert facts["deepcrf_ext"].startswith(deepcrf_ext.__version__)
    assert facts["torch"].startswith(torch.__version__)
    assert facts["instruction set"].startswith("portable (supported: portable")
    assert facts["threads"].startswith("1 ")
    assert "libgomp" in facts["OpenMP in use"]


def test_one_openmp_runtime_serves_torch_and_the_extension() -> None:
    in_use = _backend.native().openmp_runtime()
    torch_runtimes = [path for path in _loaded_openmp_runtimes() if "torch" in path]
    assert torch_runtimes in ([], [in_use])


def test_missing_extension_is_said_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "deepcrf_ext._C", None)
    _backend.native.cache_clear()
    try:
        assert env.main([]) == 1
    finally:
        _backend.native.cache_clear()
    output = capsys.readouterr().out
    assert "MISSING" in output
    assert "pip install" in output
    assert torch.__version__ in output


def test_commands_say_in_one_line_that_the_extension_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "deepcrf_ext._C", None)
    _backend.native.cache_clear()
    try:
        assert refine.main(["photos", "masks", "--output", "sharpened"]) == 2
    finally:
        _backend.native.cache_clear()
    output = capsys.readouterr().err
    assert output.startswith("error: the compiled extension deepcrf_ext._C cannot be loaded (")
    assert output.count("\n") == 1


def test_unsupported_instruction_set_is_reported() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "deepcrf_ext.env"],
        env={**os.environ, "DEEPCRF_CPU_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "got 'sse9'" in result.stdout
