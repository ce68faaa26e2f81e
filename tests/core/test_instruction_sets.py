"""Every CPU instruction set computes the operators, at sizes that leave rests in the registers, and
at one of several parts and whole blocks of nodes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deepcrf_ext.ops import _backend

EDGES_CHECK = """
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

def values_and_gradients(functions, nodes, edges, labels, features, dtype):
    generator = torch.Generator().manual_seed(nodes + labels + features)
    def randn(*size, scale=1.0):
        values = torch.randn(size, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()
    ends = torch.randint(nodes, (2, edges), generator=generator)
    graph = dc.EdgeGraph.from_edges(*ends, nodes)
    parameters = [randn(nodes, features), randn(nodes, features),
                  randn(labels, labels, features, scale=features ** -0.5), randn(labels, labels)]
    unary, table = randn(nodes, labels), randn(edges, labels, labels)
    truth = torch.randint(labels, (nodes,), generator=generator)
    truth[0] = 255
    potentials = [dc.FactoredPotential(graph, *parameters), dc.TablePotential(graph, table)]
    results = [functions.pairwise_nll(p, truth) for p in potentials]
    for potential in potentials:
        results.append(functions.pairwise_messages(potential, unary.softmax(1)).square().mean())
    results += [functions.mean_field(unary, potentials).square().sum()]
    results += [functions.pseudo_likelihood_nll(unary, potentials, truth)]
    with torch.no_grad():
        marginals = functions.mean_field(unary, potentials[:1])
    gradients = torch.autograd.grad(sum(results), [*parameters, unary, table])
    return [marginals, *results, *gradients]

# float64: the two sides must agree to rounding, whatever the order of their sums.
for size in [(30, 200, 21, 70), (40, 300, 13, 33), (20, 100, 25, 17), (33, 50, 2, 130),
             (12, 40, 60, 9), (1, 1, 1, 1), (5, 0, 3, 64), (700, 900, 70, 270)]:
    actual = values_and_gradients(dc, *size, torch.float64)
    expected = values_and_gradients(dc.reference, *size, torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda m: f"{size}: {m}")
    # float32: no further from that than plain PyTorch is in float32, plus 1e-5.
    actual = values_and_gradients(dc, *size, torch.float32)
    plain = values_and_gradients(dc.reference, *size, torch.float32)
    for one, other, truth in zip(actual, plain, expected):
        scale = truth.norm().clamp(min=1e-6)
        error, allowed = (one - truth).norm() / scale, (other - truth).norm() / scale + 1e-5
        assert error <= allowed, (size, float(error), float(allowed))
"""


def run(isa: str, check: str) -> subprocess.CompletedProcess[str]:
    """Python in a process that is to use an instruction set."""
    return subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "DEEPCRF_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("isa", _backend.native().supported_cpu_isas())
def test_operators_agree_with_the_reference(isa: str) -> None:
    used = f"\nfrom deepcrf_ext import _C\nassert _C.cpu_isa() == {isa!r}"
    done = run(isa, EDGES_CHECK + CHECK + used)
    assert done.returncode == 0, done.stderr[-2000:]


def test_unknown_instruction_set_is_an_error() -> None:
    done = run("sse9", EDGES_CHECK)
    assert done.returncode != 0
    assert "ValueError: DEEPCRF_CPU_ISA: got 'sse9', must be one that" in done.stderr
    assert ": portable" in done.stderr
