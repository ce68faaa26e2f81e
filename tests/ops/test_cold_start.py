"""What the first call in a fresh process loads: nothing of torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

DROP_IN = """
from deepcrf_ext.pydensecrf import DenseCRF2D
crf = DenseCRF2D(8, 6, 2)
crf.setUnaryEnergy(numpy.zeros((2, 48), numpy.float32))
crf.addPairwiseGaussian(3, 3)
crf.addPairwiseBilateral(80, 13, numpy.zeros((6, 8, 3), numpy.uint8), 10)
crf.inference(2)
"""
DENSE_CRF = """
from deepcrf_ext import dense_crf
dense_crf(torch.zeros(1, 2, 6, 8), torch.zeros(1, 3, 6, 8, dtype=torch.uint8))
"""
MEAN_FIELD = """
import deepcrf_ext as dc
graph = dc.EdgeGraph.from_range_box(5, 6, dc.RangeBox.surrounding(5, 6))
weight = torch.zeros(3, 3, 4, requires_grad=True)
potential = dc.FactoredPotential(
    graph, torch.zeros(30, 4), torch.zeros(30, 4), weight, torch.zeros(3, 3)
)
with torch.no_grad():
    dc.mean_field(torch.zeros(30, 3), [potential])
dc.pairwise_nll(potential, torch.zeros(30, dtype=torch.int64)).backward()
dc.mean_field(torch.zeros(30, 3), [potential]).sum().backward()
"""
LOSSES = """
import deepcrf_ext as dc
probabilities = torch.full((1, 2, 6, 8), 0.5, requires_grad=True)
image = torch.zeros(1, 3, 6, 8, dtype=torch.uint8)
dc.gated_crf_loss(probabilities, image).backward()
dc.dense_crf_loss(probabilities, image).backward()
"""
CALLS = {"drop-in": DROP_IN, "dense": DENSE_CRF, "mean field": MEAN_FIELD, "losses": LOSSES}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_first_call_loads_little(call: str) -> None:
    program = f"""
import sys, numpy, torch
before = set(sys.modules)
{call}
print(*(set(sys.modules) - before))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = run.stdout.split()
    heavy = ("torch._dynamo", "torch._inductor", "torch.distributed", "sympy", "mpmath")
    assert not [name for name in loaded if name.startswith(heavy)]
    assert len([name for name in loaded if not name.startswith("deepcrf_ext")]) < 60
