"""Every benchmark in one run, and the table of goals: python benchmarks/bench_all.py

Half an hour on two cores; on a processor with matrix tiles, where float32 is measured under "high"
and "medium" precision too, some minutes more. `--device cuda` measures a GPU; fresh processes,
scaling and goals are the CPU's.
"""

from __future__ import annotations

import bench_cold_start
import bench_densecrf
import bench_edges
import bench_end_to_end
import bench_meanfield
import bench_pairwise_loss
import bench_scaling
import bench_tables
import bench_weak_losses
import goals
from harness import run_command

from deepcrf_ext.ops import _backend


def main(device: str = "cpu", seconds: float = 1.0) -> None:
    """Prints the tables and writes records and plots.

    Args:
        device: cpu or cuda.
        seconds: time to repeat each measurement for.
    """
    bench_edges.main(device=device, seconds=seconds)
    bench_meanfield.main(device=device, seconds=seconds)
    bench_meanfield.main(device=device, seconds=seconds, gradient=True)
    bench_pairwise_loss.main(device=device, seconds=seconds)
    if device == "cpu" and _backend.has_tiles():
        for precision in ("high", "medium"):
            sizes = [f"{grid} K=21 D=512 float32" for grid in ("14x18", "28x36")]
            contenders = ("deepcrf_ext", "eager")
            largest = ["56x75 K=21 D=512 float32"]
            bench_meanfield.main(device, [*sizes, *largest], contenders, seconds, False, precision)
            bench_meanfield.main(device, sizes, contenders, seconds, True, precision)
            bench_pairwise_loss.main(device, sizes, contenders, seconds, precision)
    bench_tables.main(device=device, seconds=seconds)
    bench_densecrf.main(device=device, seconds=seconds)
    bench_weak_losses.main(device=device, seconds=seconds)
    bench_end_to_end.main(device=device, seconds=seconds)
    if device == "cpu":
        bench_cold_start.main()
        bench_scaling.main(seconds=seconds / 2)
        goals.main()


if __name__ == "__main__":
    run_command(main)
