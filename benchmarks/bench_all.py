"""Every benchmark of the operators in one run: python benchmarks/bench_all.py [--device cuda]."""

from __future__ import annotations

import bench_densecrf
import bench_edges
import bench_meanfield
import bench_pairwise_loss
from jsonargparse import auto_cli


def main(device: str = "cpu", seconds: float = 2.0) -> None:
    """Prints the tables and writes the records and plots under results/.

    Args:
        device: cpu or cuda.
        seconds: time to repeat each measurement for.
    """
    for benchmark in (bench_edges, bench_meanfield, bench_pairwise_loss, bench_densecrf):
        benchmark.main(device=device, seconds=seconds)


if __name__ == "__main__":
    auto_cli(main)
