"""One benchmark on a GPU, all cases and contenders in one process: calls, and replays of graphs.

    python benchmarks/gpu_times.py meanfield --output FOLDER

A part of on_gpu.py, for whose few minutes a process for each measurement, as harness.py has it,
would be too slow. The record is written anew after each measurement, what tells most first. With
`--repeat N` one case of this package alone runs that often, for a profiler.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import bench_densecrf
import bench_edges
import bench_end_to_end
import bench_meanfield
import bench_pairwise_loss
import harness
import peak
import torch
from bench_densecrf import DenseCase
from bench_end_to_end import Job
from cases import Case
from harness import Measurement, measure, measure_replay, result_path, write_results

import deepcrf_ext as dc
from deepcrf_ext.ops import _pairwise_nll_chunks

OURS = "deepcrf_ext"
REUSED = "deepcrf_ext, lattices reused"
SECONDS = 0.3  # a measurement on a device repeats for
NO_TIME = "no time left"
CHUNKS = {
    OURS: _pairwise_nll_chunks.CHUNK_BYTES,
    **{f"{OURS}, chunks of {size} MB": size << 20 for size in (32, 128)},
}
"""Bytes of a chunk of the loss on CUDA, by contender."""
REPLAYED = ", replayed"  # what a contender's graph is called by
Call = Callable[[], Any]
folder = tempfile.TemporaryDirectory()  # of the photographs that a training reads


def dense_call(case: str, contender: str, device: torch.device) -> Call:
    """The dense CRF of a case; eager is the plain PyTorch reference."""
    size = DenseCase.parse(case)
    image, unary = bench_densecrf.make_problem(size, None)
    if contender != "eager":
        reuse = contender == REUSED
        return bench_densecrf.prepare(image, unary, size.iterations, device=device, reuse=reuse)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
    energies = unary[None].to(device)
    return lambda: dc.reference.dense_crf(energies, planes, bench_densecrf.PARAMS, size.iterations)


def of_case(make: Callable[[Case, str, torch.device], Call]) -> Callable[..., Call]:
    """`make` for a case's name."""
    return lambda case, contender, device: make(Case.parse(case), contender, device)


def loss_call(case: Case, contender: str, device: torch.device) -> Call:
    """The loss of a case, also in chunks of other sizes."""
    _pairwise_nll_chunks.CHUNK_BYTES = CHUNKS.get(contender, CHUNKS[OURS])
    return bench_pairwise_loss.make_call(case, OURS if contender in CHUNKS else contender, device)


def training_call(case: str, contender: str, device: torch.device) -> Call:
    return bench_end_to_end.make_call(Job.parse(case), contender, str(device), Path(folder.name))


@dataclass(frozen=True)
class Benchmark:
    """Cases and contenders, both in the order of what they tell; `small`: the cases of a dry run.

    replayed: contenders that are also timed as replays of a CUDA graph.
    """

    make_call: Callable[[str, str, torch.device], Call]
    cases: Sequence[str]
    small: Sequence[str]
    contenders: Sequence[str]
    replayed: Sequence[str] = (OURS,)
    needed_bytes: Callable[[str, str], float] = lambda case, contender: 0.0


def cases_of(*grids: str, dtypes: Sequence[str] = ("bfloat16", "float32")) -> list[str]:
    """Grids of 21 labels and 512 features in these dtypes."""
    return [f"{grid} K=21 D=512 {dtype}" for grid in grids for dtype in dtypes]


PLAIN = ("eager", "chunked", "torch.compile")
TINY = ("5x6 K=3 D=8 float32",)
BENCHMARKS = {
    "meanfield": Benchmark(
        of_case(bench_meanfield.make_call),
        cases_of("28x36", "14x18", "56x75"),
        TINY,
        (OURS, *PLAIN),
        (OURS, "eager"),
        bench_meanfield.needed_bytes,
    ),
    "pairwise_loss": Benchmark(
        of_case(loss_call),
        [*cases_of("28x36", "14x18"), *cases_of("56x75", dtypes=("bfloat16",))],
        TINY,
        (*CHUNKS, *PLAIN),
        (*CHUNKS, "eager"),
        bench_pairwise_loss.needed_bytes,
    ),
    "edges": Benchmark(
        of_case(bench_edges.make_call),
        [case.name for case in reversed(bench_edges.CASES)],
        TINY,
        (OURS, "eager"),
    ),
    "densecrf": Benchmark(
        dense_call,
        ("500x375 K=21 n=10", "480x360 K=11 n=10", "500x375 K=2 n=10"),
        ("20x15 K=3 n=2",),
        (OURS, REUSED, "eager"),
        (OURS, REUSED),
    ),
    "end_to_end": Benchmark(
        training_call,
        ("paper train B=1", "small train B=8", "paper predict B=1", "small predict B=1"),
        ("small train B=1",),
        (OURS, "eager"),
        (),
    ),
}


def result_of(
    method: Callable[..., dict[str, Any]],
    make: Callable[[], Call],
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """The fields of a measurement of what `make` returns, by `measure` or `measure_replay`.

    `left_out` says what went wrong, if something did.
    """
    try:
        return method(make(), device, seconds)
    except torch.OutOfMemoryError:
        return {"left_out": harness.DOES_NOT_FIT}
    except Exception as error:  # the others are still wanted
        traceback.print_exc()
        return {"left_out": f"{type(error).__name__}: {error}".splitlines()[0][:120]}


def run(name: str, device: torch.device, dry_run: bool, deadline: float) -> bool:
    """Measures a benchmark; what is not begun by the deadline (`time.monotonic`) is left out.

    Whether this package's calls went as they should, those that do not fit aside.
    """
    benchmark = BENCHMARKS[name]
    seconds = 0.0 if dry_run else SECONDS
    limits = result_path("ceilings", device, "json")
    found = json.loads(limits.read_text(encoding="utf-8"))["ceilings"] if limits.exists() else {}
    memory = harness.MEMORY_SHARE * harness.total_memory(device)
    measurements: list[Measurement] = []

    def add(case: str, contender: str, result: dict[str, Any]) -> None:
        measurements.append(Measurement(case, contender, **result))
        write_results(name, device, measurements, ceilings=found)

    for contender in benchmark.contenders:
        if dry_run and contender == "torch.compile":
            continue  # a compiler's minute for what compiles nothing on the device
        for case in benchmark.small if dry_run else benchmark.cases:
            if time.monotonic() > deadline:
                add(case, contender, {"left_out": NO_TIME})
                continue
            if benchmark.needed_bytes(case, contender) > memory:
                add(case, contender, {"left_out": harness.DOES_NOT_FIT})
                continue
            torch.manual_seed(0)
            if contender == "torch.compile":
                torch._dynamo.reset()
            make = cache(partial(benchmark.make_call, case, contender, device))
            add(case, contender, result_of(measure, make, device, seconds))
            if device.type == "cuda" and contender in benchmark.replayed:
                result = result_of(measure_replay, make, device, seconds)
                add(case, contender + REPLAYED, result)
            del make
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    ours = [measurement for measurement in measurements if measurement.contender.startswith(OURS)]
    return {measurement.left_out for measurement in ours} <= {None, NO_TIME, harness.DOES_NOT_FIT}


def main() -> int:
    """0 when every call of this package went as it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=["ceilings", *BENCHMARKS])
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of records")
    parser.add_argument(
        "--until", type=float, default=math.inf, help="begin nothing later on the monotonic clock"
    )
    parser.add_argument("--commit", default="", help="of the code, where there is no git")
    parser.add_argument("--case", help="with --repeat: the case; default: the first")
    parser.add_argument("--repeat", type=int, help="run one case of deepcrf_ext so often, untimed")
    parser.add_argument("--dry-run", action="store_true", help="tiny cases on the CPU")
    arguments = parser.parse_args()
    harness.RESULTS = arguments.output
    harness.COMMIT = harness.COMMIT or arguments.commit
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    if arguments.benchmark == "ceilings":
        if arguments.dry_run:
            peak.SECONDS, peak.ROUNDS, peak.COPIED = 0.0, 1 << 16, 1 << 20
        limits = peak.ceilings(device, [torch.float32, torch.bfloat16])
        write_results("ceilings", device, [], ceilings=limits)
    elif arguments.repeat is not None:
        benchmark = BENCHMARKS[arguments.benchmark]
        case = (benchmark.small if arguments.dry_run else benchmark.cases)[0]
        call = benchmark.make_call(arguments.case or case, OURS, device)
        for _ in range(arguments.repeat):
            call()
    else:
        return int(not run(arguments.benchmark, device, arguments.dry_run, arguments.until))
    return 0


if __name__ == "__main__":
    sys.exit(main())
