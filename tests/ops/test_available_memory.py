"""What is left of the memory of a machine, and of a control group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepcrf_ext.ops import _available_memory
from deepcrf_ext.ops._available_memory import available_memory

CPU = torch.device("cpu")


def test_no_more_than_the_machine_has() -> None:
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("MemTotal")
    )
    available = available_memory(CPU)
    assert available is not None
    assert 0 < available < total


def test_a_control_group_may_leave_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tuple(tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(_available_memory, "_LIMITS", (files,))
    without = available_memory(CPU)
    files[0].write_text("max\n")
    files[1].write_text("5000000\n")
    files[2].write_text("anon 4000000\ninactive_file 600000\n")
    assert without is not None
    assert available_memory(CPU) == pytest.approx(without, rel=0.2)
    files[0].write_text("7000000\n")
    assert available_memory(CPU) == 7_000_000 - 5_000_000 + 600_000


def test_unknown_where_nothing_says() -> None:
    assert available_memory(torch.device("meta")) is None


def test_the_device_is_not_asked_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5_000, 9_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    for capturing, available in ((False, 5_400), (True, None)):
        monkeypatch.setattr(_available_memory, "is_capturing", lambda _, now=capturing: now)
        assert available_memory(device) == available
