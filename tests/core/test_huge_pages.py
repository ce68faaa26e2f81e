"""Large arrays that kernels write are advised to have huge pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from problems import random_graph

import deepcrf_ext as dc

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def is_advised(tensor: torch.Tensor) -> bool:
    """Whether the middle of the tensor lies in memory with the flag of huge pages, `hg`."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    mappings = Path("/proc/self/smaps").read_text(encoding="utf-8")
    for mapping in re.split(r"^(?=[0-9a-f]+-)", mappings, flags=re.M):
        limits = re.match(r"([0-9a-f]+)-([0-9a-f]+)", mapping)
        if limits and int(limits[1], 16) <= middle < int(limits[2], 16):
            (flags,) = re.findall(r"VmFlags:(.*)", mapping)
            return "hg" in flags.split()
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.skipif(not SETTING.exists(), reason="this kernel has no huge pages")
def test_the_gradient_of_a_large_table_has_huge_pages() -> None:
    table = torch.randn(60_000, 12, 12).requires_grad_()  # 35 MB, which no array before it held
    potential = dc.TablePotential(random_graph(500, 60_000, 0), table)
    loss = dc.pairwise_nll(potential, torch.zeros(500, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, table)
    assert is_advised(gradient)
    assert not is_advised(table.detach())  # memory of others is left alone
