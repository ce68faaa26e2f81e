"""What the benchmarks share: measuring in a process of its own, records, tables and plots.

Every measurement runs in a fresh process, so that one contender's memory and compiled code cannot
touch another's. Times are host times of the whole call on the CPU, device events on CUDA; memory
is the peak above what the inputs hold. The options of a benchmark need jsonargparse; on_gpu.py,
which times the same calls on a device, does without.

With the environment variable DEEPCRF_CPU_ISA (avx2, avx512) this package keeps to that instruction
set, and PyTorch is held to it too, by `TORCH_LIMITS`: so a ratio is what a machine without the
others would show, clock rates and the width of its units apart. MKL may use another set than it is
told on processors that are not Intel's.

Records go to build/benchmarks, or where --output says: benchmarks/results has those that the
documentation quotes. They are named after the processor: NAME-amd and NAME-intel with AVX-512,
NAME-intel-amx, NAME-amd-avx2 where that is the best there is or was asked for, NAME-h100.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import torch

import deepcrf_ext
from deepcrf_ext.ops import _backend
from deepcrf_ext.records.provenance import package_commit, process_command
from deepcrf_ext.whole_files import write_text

RESULTS = Path(__file__).parents[1] / "build" / "benchmarks"
MEMORY_SHARE = 0.6  # a contender that would need more of the machine's memory is left out
MOST_MEMORY = 0.85  # a process that asks for more of it ends
OUT_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "MemoryError")
DOES_NOT_FIT = "does not fit"
LONG = 5.0  # seconds; a call of more is measured once
REPLAYS = 10  # of a graph between two device events, which take some microseconds themselves
COMMIT = package_commit()  # before a record is written, which makes the checkout a dirty one

TORCH_LIMITS = {
    "portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}
"""What holds PyTorch to the instruction set that DEEPCRF_CPU_ISA names."""

# PyTorch reads them when it first computes. One that is set already stays as it is.
for _variable, _value in TORCH_LIMITS.get(os.environ.get("DEEPCRF_CPU_ISA", ""), {}).items():
    os.environ.setdefault(_variable, _value)


@dataclass(frozen=True)
class Measurement:
    """One contender on one case; times in seconds, memory in bytes.

    left_out: why there is no time and no memory, or None.
    """

    case: str
    contender: str
    median: float | None = None
    fastest: float | None = None
    peak_bytes: int | None = None
    repeats: int = 0
    left_out: str | None = None


def measure(
    call: Callable[[], Any],
    device: torch.device,
    seconds: float,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Median and fastest time of a call, and its peak memory; some runs after two to warm up.

    A call of more than `LONG` seconds runs once to warm up and once for time and memory. `clock`
    gives the seconds on the CPU.
    """
    call()
    times: list[float] = []
    peak = _peak_memory(lambda: times.append(_timed(call, device, clock)), device)
    if times[0] <= LONG:
        times.clear()
        begin = time.perf_counter()
        while len(times) < repeats or (time.perf_counter() - begin < seconds and len(times) < 200):
            times.append(_timed(call, device, clock))
    return {
        "median": statistics.median(times),
        "fastest": min(times),
        "peak_bytes": peak,
        "repeats": len(times),
    }


def measure_replay(call: Callable[[], Any], device: torch.device, seconds: float) -> dict[str, Any]:
    """As `measure`, of the replays of a CUDA graph of the call; its memory is what the graph holds.

    Raises RuntimeError when the call cannot be captured.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        with torch.cuda.graph(graph):
            call()

    def replay() -> None:
        for _ in range(REPLAYS):
            graph.replay()

    peak = _peak_memory(capture, device)
    result = measure(replay, device, seconds)
    times = {name: result[name] / REPLAYS for name in ("median", "fastest")}
    return {**result, **times, "peak_bytes": peak}


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
    # 5 sets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def total_memory(device: torch.device) -> int:
    """Bytes of memory of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run_in_process(script: str, arguments: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Runs `script --worker ...` and returns the fields of its measurement.

    On the CPU it is given `MOST_MEMORY` of the machine. Raises RuntimeError when it fails, other
    than for want of memory.
    """

    def limit_memory() -> None:
        if device.type == "cpu":
            most = int(MOST_MEMORY * total_memory(device))
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    command = [sys.executable, script, "--worker", "true", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_memory)
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    if done.returncode == -signal.SIGKILL or any(sign in done.stderr for sign in OUT_OF_MEMORY):
        return {"left_out": DOES_NOT_FIT}
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def sweep(
    script: str,
    device: str,
    cases: Sequence[str],
    contenders: Sequence[str],
    seconds: float,
    needed_bytes: Callable[[str, str], float] = lambda case, contender: 0.0,
    options: Sequence[str] = (),
    reason_against: Callable[[str, str], str | None] = lambda case, contender: None,
) -> list[Measurement]:
    """Every contender on every case.

    Left out are those whose `needed_bytes(case, contender)` are too many, and those with a
    `reason_against(case, contender)`. `options` are further arguments of the script.
    """
    where = torch.device(device)
    measurements = []
    for case in cases:
        for contender in contenders:
            reason = reason_against(case, contender)
            if needed_bytes(case, contender) > MEMORY_SHARE * total_memory(where):
                reason = DOES_NOT_FIT
            result: dict[str, Any] = {"left_out": reason}
            if reason is None:
                arguments = [
                    f"--device={device}",
                    f"--cases={json.dumps([case])}",
                    f"--contenders={json.dumps([contender])}",
                    f"--seconds={seconds}",
                    *options,
                ]
                result = run_in_process(script, arguments, where)
            measurements.append(Measurement(case, contender, **result))
    return measurements


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on: processor or GPU, threads, versions, commit, command."""
    limits = {"DEEPCRF_CPU_ISA", *(name for limit in TORCH_LIMITS.values() for name in limit)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_isa": _backend.native().cpu_isa(),
        "limits": {name: os.environ[name] for name in sorted(limits) if name in os.environ},
        "deepcrf_ext": deepcrf_ext.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **(_cuda_facts() if device.type == "cuda" else {}),
        "commit": COMMIT or "unknown",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": process_command(),
    }


@cache
def _cuda_facts() -> dict[str, Any]:
    """The driver, torch's CUDA, and what this package's kernels were built by and for."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
        driver = done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    built = _backend.native().cuda_build()
    return {"driver": driver, "cuda": torch.version.cuda, "kernels": built}


@cache
def _cpu_info() -> dict[str, str]:
    """What Linux says of the processor, by its own names."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w ]+\w)\s*: (.+)", text, re.MULTILINE))


def _processor() -> str:
    """Its name, with the numbers that tell generations of one name apart where Linux has them."""
    facts = _cpu_info()
    name = facts.get("model name") or platform.processor() or platform.machine()
    if not {"cpu family", "model"} <= facts.keys():
        return name
    return f"{name}, family {facts['cpu family']}, model {facts['model']}"


def result_path(name: str, device: torch.device, suffix: str) -> Path:
    """RESULTS/NAME-PROCESSOR.SUFFIX, as in meanfield-intel-amx.json or edges-h100.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    kind = _gpu_kind(device) if device.type == "cuda" else _processor_kind()
    return RESULTS / f"{name}-{kind}.{suffix}"


def _gpu_kind(device: torch.device) -> str:
    model = re.search(r"\b[A-Z]{1,2}\d+\w*|\bRTX \d+", torch.cuda.get_device_name(device))
    return model[0].lower().replace(" ", "") if model else "cuda"


def _processor_kind() -> str:
    """The maker of the processor, with the instruction set that is used unless it is AVX-512."""
    makers = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
    maker = makers.get(_cpu_info().get("vendor_id", ""), platform.machine())
    isa = _backend.native().cpu_isa()
    usual = isa.startswith("avx512") and "DEEPCRF_CPU_ISA" not in os.environ
    return maker if usual else f"{maker}-{isa}"


def write_results(
    name: str, device: torch.device, measurements: Sequence[Measurement], **extra: Any
) -> Path:
    """Writes the JSON record of this name and returns its path."""
    path = result_path(name, device, "json")
    record = {
        "machine": machine(device),
        **extra,
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    write_text(path, json.dumps(record, indent=1) + "\n")
    return path


def print_table(title: str, measurements: Sequence[Measurement], baseline: str) -> None:
    """One line a measurement: time, ratio to the baseline's, peak memory, ratio to its memory."""
    base = {m.case: m for m in measurements if m.contender == baseline}
    print(f"\n{title}")
    wide = max([20, *(len(m.contender) for m in measurements)])
    print(
        f"{'case':34} {'contender':{wide}} {'median':>12} {'speed-up':>9} {'peak MB':>9} "
        f"{'memory':>8}"
    )
    for m in measurements:
        reference = base.get(m.case)
        if m.median is None or m.peak_bytes is None:
            print(f"{m.case:34} {m.contender:{wide}} {m.left_out:>12}")
            continue
        speed = memory = ""
        if reference is not None and reference.median and reference.peak_bytes:
            speed = f"{reference.median / m.median:.1f}x"
            memory = f"1/{reference.peak_bytes / max(m.peak_bytes, 1):.0f}"
        print(
            f"{m.case:34} {m.contender:{wide}} {m.median * 1e3:10.3f}ms {speed:>9} "
            f"{m.peak_bytes / 1e6:9.1f} {memory:>8}"
        )


def plot_scaling(
    name: str, device: torch.device, measurements: Sequence[Measurement], edges: dict[str, int]
) -> Path:
    """Time and memory against edges for every contender; returns the PNG's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].legend()
    path = result_path(name, device, "png")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def run_command(main: Callable[..., None]) -> None:
    """Runs a benchmark with the arguments of `main`, and --output, as options of the command."""
    from jsonargparse import ArgumentParser

    from deepcrf_ext.cli.help import HelpFormatter

    global RESULTS
    summary = (main.__doc__ or "").partition("\n\n")[0]
    parser = ArgumentParser(description=summary, formatter_class=HelpFormatter)
    parser.add_function_arguments(main)
    parser.add_argument("--output", type=Path, default=RESULTS, help="Folder of the records.")
    options = vars(parser.instantiate_classes(parser.parse_args()))
    RESULTS = options.pop("output")
    main(**options)
