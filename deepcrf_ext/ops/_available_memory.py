"""How much memory there is to take, so that what cannot fit is refused before it is begun."""

from __future__ import annotations

from pathlib import Path

import torch

from deepcrf_ext.ops._device_cache import is_capturing

_CGROUP = Path("/sys/fs/cgroup")
# Limit and use of the process's group, as version 2 and version 1 of cgroups spell them.
_LIMITS = (
    (_CGROUP / "memory.max", _CGROUP / "memory.current", _CGROUP / "memory.stat"),
    (
        _CGROUP / "memory/memory.limit_in_bytes",
        _CGROUP / "memory/memory.usage_in_bytes",
        _CGROUP / "memory/memory.stat",
    ),
)


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be taken on a device without harm; None where the system does not say.

    On the CPU the lesser of what the machine has left and what the control group of the process
    has, page cache counted as free. On CUDA what the device and torch's allocator have left; None
    while a CUDA graph is captured, where not every question is allowed.
    """
    if device.type == "cuda":
        if is_capturing(device):
            return None
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    free_bytes = [free for free in (_machine(), *map(_group, _LIMITS)) if free is not None]
    return min(free_bytes, default=None)


def _machine() -> int | None:
    available = _fields(Path("/proc/meminfo")).get("MemAvailable:")
    return None if available is None else available * 1024


def _group(files: tuple[Path, Path, Path]) -> int | None:
    try:
        limit, used = (int(file.read_text(encoding="utf-8")) for file in files[:2])
    except (OSError, ValueError):  # no such group, or "max"
        return None
    statistics = _fields(files[2])
    cache = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
    return max(0, limit - used + cache)


def _fields(file: Path) -> dict[str, int]:
    """The first two words of every line."""
    try:
        words = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
        return {line[0]: int(line[1]) for line in words if len(line) > 1}
    except (OSError, ValueError):
        return {}
