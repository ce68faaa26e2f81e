"""All that a GPU can tell in eight minutes: build, tests, times, sanitizer, profiles, one table.

    python benchmarks/on_gpu.py [--output FOLDER] [--budget 480] [--only build meanfield]

Each part is a process with a time limit of its own; when the budget is short it gets what is left,
or is left out. Tests and sanitizers share the GPU, times and profiles have it alone. What a part
says goes to on_gpu.log when it ends, profiles too; times to NAME-MODEL.json, as in edges-h100.json;
how each part ended to on_gpu.json. It needs no network, and of Python packages torch, NumPy, SciPy,
OpenCV, Pillow, PyYAML, tqdm, tensorboard, pytest, hypothesis, setuptools, CMake, ninja and
pybind11; with pytest-xdist, tests run side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from timed_parts import Outcome, Part, answer, find_tool, run, together

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
TIMES = ("pairwise_loss", "meanfield", "densecrf", "edges", "end_to_end")

ON_DEVICE = "cuda and not cuda_on_host"
OPERATOR_TESTS = (
    *("cuda_kernels", "cuda_lattice"),
    *("operators", "pairwise_nll", "pairwise_messages", "mean_field", "pseudo_likelihood"),
    *("dense_crf", "permutohedral_filter", "gated_crf_loss", "dense_crf_loss", "range_box_edges"),
    *("dense_crf_gradients", "dense_crf_shapes", "float16", "autocast", "arguments", "graph"),
    "compile",
)
SANITIZED_TESTS = (
    *("cuda_kernels", "cuda_lattice", "range_box_edges"),
    *("gated_crf_loss", "dense_crf", "operators"),
)
# A few cases that launch every kernel, in each dtype: each tensor is an allocation of its own.
SANITIZED = f"{ON_DEVICE} and (" + " or ".join(
    [
        *("label-tiles", "many-neighbours", "cuda_lattice", "range_box_edges"),
        *("(gated_crf_loss and test_accuracy and axes5)", "cuda-1-21", "cuda-1-150"),
        "(test_accuracy and table and odd)",
    ]
)
SANITIZED += ")"


def architecture() -> str:
    """The card's compute capability as CMake writes it, such as 90-real; empty where unknown."""
    printed = answer("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = re.match(r"(\d+)\.(\d+)\b", printed)
    return f"{found[1]}{found[2]}-real" if found else ""


def build(dry_run: bool) -> Part:
    """Builds for the card alone, in two minutes on 16 cores; a dry run reads setup.py alone."""
    command = [sys.executable, "setup.py"]
    if dry_run:
        return Part("build", 180, [*command, "--version"])
    for_card = os.environ.get("CMAKE_CUDA_ARCHITECTURES") or architecture()
    wanted = {"DEEPCRF_CUDA": "on", "CMAKE_CUDA_ARCHITECTURES": for_card}
    return Part("build", 180, [*command, "build_ext", "--inplace"], wanted)


def pytest(
    names: Sequence[str], keywords: str, dry_run: bool, *options: str, others: Sequence[str] = ()
) -> list[str]:
    """Tests of tests/ops by name and other files; a dry run has a few tests of the CPU."""
    files = [*(f"tests/ops/test_{name}.py" for name in names), *others]
    if dry_run:
        files, keywords, options = ["tests/ops/test_range_box_edges.py"], "cpu and large_grid", ()
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--maxfail=100", "--hypothesis-profile=few"]  # of more, the log grows too long
    command.append("--continue-on-collection-errors")  # a package missing is not all tests missing
    return [*command, *options, *files, "-k", keywords]


def in_processes(count: int) -> tuple[str, ...]:
    """Options of pytest-xdist, if it is there: tests after one that puts the GPU out of use run in
    a fresh process."""
    return ("-n", str(count), "--dist", "worksteal") if find_spec("xdist") else ()


def sanitizer(tool: str, dry_run: bool) -> Part:
    """A tool of compute-sanitizer over small cases, this package's kernels alone; but initcheck
    must see what torch's kernels write."""
    program = find_tool("compute-sanitizer")
    known = answer(program, "--help") if program else ""
    filters = "--kernel-regex" if "--kernel-regex" in known else "--kernel-name"
    options = ["--tool", tool, "--error-exitcode", "9"]
    if tool != "initcheck":
        options += [filters, "kernel_substring=deepcrf"]
    if tool == "memcheck":  # calls that torch lets fail and goes on from
        options += ["--report-api-errors", "no"]
    return Part(
        tool,
        110,
        pytest(SANITIZED_TESTS, SANITIZED, dry_run),
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"},
        ("compute-sanitizer", *options, "--print-limit", "20"),
        beside=True,
    )


def profile(benchmark: str, kernels: str, skip: int, count: int, worker: Sequence[str]) -> Part:
    """ncu's counters of `count` kernels of a benchmark's first case, after the first `skip`."""
    names = ("--kernel-name-base", "demangled", "-k", f"regex:deepcrf.*({kernels})_kernel")
    counters = ("--clock-control", "none", "--set", "full", "-s", str(skip), "-c", str(count))
    return Part(
        f"profile {benchmark}",
        35,
        [*gpu_times(benchmark), *worker, "--repeat", "3"],
        tool=("ncu", *names, *counters),
    )


def gpu_times(name: str) -> list[str]:
    return [sys.executable, "benchmarks/gpu_times.py", name]


def parts(dry_run: bool, output: Path, commit: str) -> list[Part]:
    """Every part, what tells most first."""
    worker = ["--output", str(output), *(["--commit", commit] if commit else [])]
    worker += ["--dry-run"] if dry_run else []
    training = ["tests/training/test_cuda_training.py"]
    limits = {"edges": 20, "densecrf": 30, "pairwise_loss": 55}
    usual, huge = f"{ON_DEVICE} and not past_two_to", f"{ON_DEVICE} and past_two_to"
    return [
        build(dry_run),
        Part(
            "device tests",
            60,
            pytest(("cuda_device",), usual, dry_run, *in_processes(2)),
            {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},  # its products are then the same on any stream
        ),
        Part(
            "operator tests",
            110,
            pytest(OPERATOR_TESTS, ON_DEVICE, dry_run, *in_processes(10), others=training),
            {"OMP_NUM_THREADS": "1"},
            beside=True,
        ),
        *(sanitizer(tool, dry_run) for tool in SANITIZERS),
        Part("ceilings", 30, [*gpu_times("ceilings"), *worker]),
        *(
            Part(name, limits.get(name, 45), [*gpu_times(name), *worker], timed=True)
            for name in TIMES
        ),
        profile("pairwise_loss", "hidden|losses|reduce", 2, 6, worker),
        profile("meanfield", "tensor_messages", 1, 2, worker),
        profile("densecrf", "splat|blur|update", 12, 9, worker),
        Part("huge tests", 60, pytest(("cuda_device",), huge, dry_run)),
    ]


def begin_facts(output: Path) -> None:
    """Writes what the machine and its programs are to the log, while the build runs, and so has
    torch come from the disk before it is needed."""
    with (output / "on_gpu.log").open("a", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "torch.utils.collect_env"]
        subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)


def print_table(output: Path, begin: float, outcomes: Sequence[Outcome]) -> None:
    """Times of each benchmark since `begin` (`time.time`), ceilings, and how each part ended."""
    sys.path.append(str(ROOT))  # of the package, which need not be installed
    from harness import Measurement
    from harness import print_table as print_times

    def records(name: str) -> list[Path]:
        return [path for path in output.glob(f"{name}-*.json") if path.stat().st_mtime >= begin]

    for name in TIMES:
        for path in records(name):
            found = json.loads(path.read_text(encoding="utf-8"))["measurements"]
            print_times(path.stem, [Measurement(**fields) for fields in found], "eager")
    for path in records("ceilings"):
        record = json.loads(path.read_text(encoding="utf-8"))
        print(f"\n{record['machine']['device']}")
        for name, value in record["ceilings"].items():
            print(f"{name.replace('_per_second', ''):40} {value / 1e12:9.3f} T/s")
    print(f"\n{'part':24} {'seconds':>8}  result")
    for outcome in outcomes:
        print(f"{outcome.part:24} {outcome.seconds:8.1f}  {outcome.result}; {outcome.summary}")


def main() -> int:
    """0 when no part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "on_gpu", help="folder of all files"
    )
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all parts")
    parser.add_argument("--only", nargs="+", help="names of the parts to run")
    parser.add_argument("--skip", nargs="+", help="names of parts not to run")
    parser.add_argument("--commit", default="", help="of the code, where there is no git")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, no tools")
    arguments = parser.parse_args()
    missing = [name for name in ("torch", "pybind11", "pytest") if find_spec(name) is None]
    if missing:
        parser.error(f"{sys.executable} has no {', '.join(missing)}")
    start, begin = time.time(), time.monotonic()
    output = arguments.output.resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "on_gpu.log").open("a", encoding="utf-8").close()
    except OSError as error:
        parser.error(f"--output: got {output}, must be a folder to write to ({error.strerror})")
    every = parts(arguments.dry_run, output, arguments.commit)
    names = [part.name for part in every]
    for option in ("only", "skip"):
        wrong = set(getattr(arguments, option) or ()) - set(names)
        if wrong:
            parser.error(f"--{option}: got {sorted(wrong)}, must be of {names}")
    outcomes: list[Outcome] = []
    for group in together(every):
        chosen = [part for part in group if not arguments.only or part.name in arguments.only]
        chosen = [part for part in chosen if part.name not in (arguments.skip or ())]
        if "build" in [part.name for part in chosen]:
            begin_facts(output)
        left = arguments.budget - (time.monotonic() - begin)
        for outcome in run(chosen, left, output, arguments.dry_run):
            outcomes.append(outcome)
            print(f"{outcome.part}: {outcome.result}", flush=True)
            record = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
            (output / "on_gpu.json").write_text(record + "\n", encoding="utf-8")
        if outcomes and outcomes[-1].part == "build" and outcomes[-1].result != "ok":
            break  # nothing else would run what the sources say
    print_table(output, start, outcomes)
    return int(any(outcome.result == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
