"""Checks an installed wheel beside what it depends on alone: run as a program, by `make wheel`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

import deepcrf_ext as dc
from deepcrf_ext.env import main as print_environment
from deepcrf_ext.ops import _backend


def main() -> None:
    assert importlib.util.find_spec("jsonargparse") is None, "the wheel has to do without"
    assert print_environment() == 0
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    runtimes = {line.split()[-1] for line in maps if "gomp" in line}
    assert runtimes <= {_backend.native().openmp_runtime()}, f"more than one OpenMP: {runtimes}"
    torch.manual_seed(0)
    graph = dc.EdgeGraph.from_range_box(6, 7, dc.RangeBox(-2, 2, -2, 2))
    source, target = torch.randn(2, 42, 16).unbind()
    weight = torch.randn(5, 5, 16, requires_grad=True)
    potential = dc.FactoredPotential(graph, source, target, weight, torch.zeros(5, 5))
    unary = torch.randn(42, 5)
    dc.pairwise_nll(potential, torch.randint(5, (42,))).backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        marginals = dc.mean_field(unary, [potential])
        torch.testing.assert_close(marginals, dc.reference.mean_field(unary, [potential]))
    image = torch.randint(256, (1, 3, 20, 30), dtype=torch.uint8)
    labels = dc.dense_crf(torch.randn(1, 4, 20, 30), image)
    torch.testing.assert_close(labels.sum(1), torch.ones(1, 20, 30))
    print(f"the wheel works with torch {torch.__version__}")


if __name__ == "__main__":
    main()
