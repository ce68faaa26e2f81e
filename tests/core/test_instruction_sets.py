"""Every CPU instruction set computes the operators, at sizes that leave rests in the registers, and
at one of several parts and whole blocks of nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from isa_problems import SIZES, values_and_gradients

import deepcrf_ext as dc
from deepcrf_ext.ops import _backend

EDGES_CHECK = """
import sys
import torch
from deepcrf_ext.ops.range_box_edges import range_box_edges
from deepcrf_ext.reference.range_box_edges import range_box_edges as reference
for arguments in [(9, 40, -3, 2, -30, 25), (7, 33, 1, 4, -2, 2), (5, 6, 3, 9, -9, -1)]:
    for actual, expected in zip(
        range_box_edges(*arguments, torch.device("cpu")),
        reference(*arguments, torch.device("cpu")),
        strict=True,
    ):
        assert torch.equal(actual, expected), arguments
"""

CHECK = """
import torch
import deepcrf_ext as dc
from isa_problems import SIZES, values_and_gradients

for size, (expected, plain) in zip(SIZES, torch.load(sys.argv[1]), strict=True):
    # float64: the two sides must agree to rounding, whatever the order of their sums.
    actual = values_and_gradients(dc, size, torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda m: f"{size}: {m}")
    # float32: no further from that than plain PyTorch is in float32, plus 1e-5.
    actual = values_and_gradients(dc, size, torch.float32)
    for one, other, truth in zip(actual, plain, expected, strict=True):
        scale = truth.norm().clamp(min=1e-6)
        error, allowed = (one - truth).norm() / scale, (other - truth).norm() / scale + 1e-5
        assert error <= allowed, (size, float(error), float(allowed))
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reference gives, in float64 and in float32."""
    path = tmp_path_factory.mktemp("isa") / "reference.pt"
    dtypes = (torch.float64, torch.float32)
    torch.save(
        [[values_and_gradients(dc.reference, size, dtype) for dtype in dtypes] for size in SIZES],
        path,
    )
    return path


def run(isa: str, check: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process that is to use an instruction set."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", check, *arguments],
        env={**os.environ, "DEEPCRF_CPU_ISA": isa, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("isa", _backend.native().supported_cpu_isas())
def test_operators_agree_with_the_reference(isa: str, reference: Path) -> None:
    used = f"\nfrom deepcrf_ext import _C\nassert _C.cpu_isa() == {isa!r}"
    done = run(isa, EDGES_CHECK + CHECK + used, str(reference))
    assert done.returncode == 0, done.stderr[-2000:]


def test_unknown_instruction_set_is_an_error() -> None:
    done = run("sse9", EDGES_CHECK)
    assert done.returncode != 0
    assert "ValueError: DEEPCRF_CPU_ISA: got 'sse9', must be one that" in done.stderr
    assert ": portable" in done.stderr
