"""One small image in a fresh process, as scripts that are started once an image do.

    python benchmarks/bench_cold_start.py

The script of pydensecrf's users runs as it is, over pydensecrf2 and over this package's drop-in
module; "torch alone" imports torch and does nothing, which is what the latter cannot go below.
Times and memory are of the whole process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from harness import Measurement, print_table, run_command, write_results

CASE = "64x48 K=5 n=5"
_SCRIPT = """
import numpy
from {module} import DenseCRF2D
energies = numpy.random.default_rng(0).random((5, 48 * 64), numpy.float32)
crf = DenseCRF2D(64, 48, 5)
crf.setUnaryEnergy(energies)
crf.addPairwiseGaussian(sxy=3, compat=3)
crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=numpy.zeros((48, 64, 3), numpy.uint8), compat=10)
numpy.array(crf.inference(5)).reshape(5, -1).argmax(0)
"""
_PEAK = """
print(*(line for line in open("/proc/self/status", encoding="utf-8") if line.startswith("VmHWM:")))
"""
SCRIPTS = {
    "deepcrf_ext": _SCRIPT.format(module="deepcrf_ext.pydensecrf"),
    "torch alone": "import torch",
    "pydensecrf2": _SCRIPT.format(module="pydensecrf.densecrf"),
}
INSTALLED = tuple(SCRIPTS) if find_spec("pydensecrf") else tuple(SCRIPTS)[:2]


def run_script(script: str) -> tuple[float, int]:
    """Seconds and peak bytes of a Python process. Raises RuntimeError when it fails."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", script + _PEAK]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"a script ended with {done.returncode}: {done.stderr[-2000:]}")
    return seconds, 1024 * int(done.stdout.split()[1])


def main(contenders: Sequence[str] = INSTALLED, repeats: int = 9) -> None:
    """Measures, prints a table and writes the record `cold_start`.

    Args:
        contenders: which of "deepcrf_ext", "torch alone" and "pydensecrf2", the last by default
            only where it is installed.
        repeats: processes of each, in turn, after one that fills the file cache.
    """
    runs = [[run_script(SCRIPTS[name]) for name in contenders] for _ in range(repeats + 1)][1:]
    measurements = []
    for name, results in zip(contenders, zip(*runs, strict=True), strict=True):
        times, peaks = zip(*results, strict=True)
        measurements.append(
            Measurement(CASE, name, statistics.median(times), min(times), max(peaks), repeats)
        )
    print_table("one image in a fresh process", measurements, "torch alone")
    print(write_results("cold_start", torch.device("cpu"), measurements))


if __name__ == "__main__":
    run_command(main)
