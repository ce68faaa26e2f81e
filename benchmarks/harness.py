"""What the benchmarks share: measuring in a process of its own, records, tables and plots.

Every measurement runs in a fresh process, so that one contender's memory and compiled code cannot
touch another's. Times are host times of the whole call on the CPU, device events on CUDA; memory
is the peak above what the inputs hold.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import deepcrf_ext
from deepcrf_ext.ops import _backend

RESULTS = Path(__file__).parent / "results"
MEMORY_SHARE = 0.6  # a contender that would need more of the machine's memory is left out


@dataclass(frozen=True)
class Measurement:
    """One contender on one case; times in seconds, memory in bytes, None where it does not fit."""

    case: str
    contender: str
    median: float | None
    fastest: float | None
    peak_bytes: int | None
    repeats: int


def measure(
    call: Callable[[], Any],
    device: torch.device,
    seconds: float,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Median and fastest time of a call, and its peak memory; some runs after two to warm up.

    `clock` gives the seconds on the CPU.
    """
    call()
    peak = _peak_memory(call, device)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repeats or (time.perf_counter() - begin < seconds and len(times) < 200):
        times.append(_timed(call, device, clock))
    return {
        "median": statistics.median(times),
        "fastest": min(times),
        "peak_bytes": peak,
        "repeats": len(times),
    }


def _timed(call: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type != "cuda":
        begin = clock()
        call()
        return clock() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def _peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # else the call runs in what earlier ones left resident
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def fits(needed_bytes: float, device: torch.device) -> bool:
    """Whether an allocation is within this machine's share for one contender."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return needed_bytes < MEMORY_SHARE * total


def run_in_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs `script --worker ...` and returns the JSON object of its last line of output."""
    command = [sys.executable, script, "--worker", "true", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def sweep(
    script: str,
    device: str,
    cases: Sequence[str],
    contenders: Sequence[str],
    seconds: float,
    needed_bytes: Callable[[str, str], float],
    options: Sequence[str] = (),
) -> list[Measurement]:
    """Every contender on every case, but where its `needed_bytes(case, contender)` do not fit.

    `options` are further arguments of the script.
    """
    measurements = []
    for case in cases:
        for contender in contenders:
            result: dict[str, Any] = dict.fromkeys(("median", "fastest", "peak_bytes"))
            result["repeats"] = 0
            if fits(needed_bytes(case, contender), torch.device(device)):
                arguments = [
                    f"--device={device}",
                    f"--cases={json.dumps([case])}",
                    f"--contenders={json.dumps([contender])}",
                    f"--seconds={seconds}",
                    *options,
                ]
                result = run_in_process(script, arguments)
            measurements.append(Measurement(case, contender, **result))
    return measurements


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on: processor or GPU, threads, versions, commit, command."""
    native = _backend.native()
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_isa": native.cpu_isa(),
        "deepcrf_ext": deepcrf_ext.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_results(
    name: str, device: torch.device, measurements: Sequence[Measurement], **extra: Any
) -> Path:
    """Writes results/NAME-DEVICE.json and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{device.type}.json"
    record = {
        "machine": machine(device),
        **extra,
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def print_table(title: str, measurements: Sequence[Measurement], baseline: str) -> None:
    """One line a measurement: time, ratio to the baseline's, peak memory, ratio to its memory."""
    base = {m.case: m for m in measurements if m.contender == baseline}
    print(f"\n{title}")
    print(
        f"{'case':34} {'contender':20} {'median':>10} {'speed-up':>9} {'peak MB':>9} {'memory':>8}"
    )
    for m in measurements:
        reference = base.get(m.case)
        if m.median is None or m.peak_bytes is None:
            print(f"{m.case:34} {m.contender:20} {'does not fit':>10}")
            continue
        speed = memory = ""
        if reference is not None and reference.median and reference.peak_bytes:
            speed = f"{reference.median / m.median:.1f}x"
            memory = f"1/{reference.peak_bytes / max(m.peak_bytes, 1):.0f}"
        print(
            f"{m.case:34} {m.contender:20} {m.median * 1e3:8.1f}ms {speed:>9} "
            f"{m.peak_bytes / 1e6:9.1f} {memory:>8}"
        )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written bytes counted."""
    source = torch.ones(1 << 27, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    result = measure(lambda: target.copy_(source), device, 0.5)
    return 2 * source.numel() * source.element_size() / float(result["fastest"])


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product through torch."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    result = measure(lambda: a @ b, device, 1.0)
    return 2 * size**3 / float(result["fastest"])


def plot_scaling(
    name: str, device: torch.device, measurements: Sequence[Measurement], edges: dict[str, int]
) -> Path:
    """Time and memory against edges for every contender; returns the PNG's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for contender in dict.fromkeys(m.contender for m in measurements):
        points = sorted(
            (edges[m.case], m.median, m.peak_bytes)
            for m in measurements
            if m.contender == contender and m.median is not None and m.case in edges
        )
        if not points:
            continue
        count, seconds, memory = zip(*points, strict=True)
        axes[0].plot(count, [s * 1e3 for s in seconds], "o-", label=contender)
        axes[1].plot(count, [max(b, 1) / 1e6 for b in memory], "o-", label=contender)
    for axis, label in zip(axes, ("time, ms", "peak extra memory, MB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="edges", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    path = RESULTS / f"{name}-{device.type}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
