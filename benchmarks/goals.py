"""The goals for the CPU beside what the records of a run say: python benchmarks/goals.py

With DEEPCRF_CPU_ISA, the records that were taken with that instruction set.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from harness import result_path, run_command

from deepcrf_ext.ops import _backend

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Goal:
    """How many times faster than the baseline a case is to be, on how many times less memory.

    record: the name that the file of results starts with. share: of the peak of multiply-adds.
    """

    work: str
    record: str
    case: str
    faster: float | None = None
    smaller: float | None = None
    share: float | None = None
    plain: str = "eager"


def _operators() -> tuple[Goal, ...]:
    """Float32 on any processor; bfloat16 against eager bfloat16, on one with AMX."""
    share = 0.6 if _backend.native().cpu_isa() == "avx2" else 0.8
    goals: list[Goal] = []
    for grid, narrow, smaller in (("14x18", 8, None), ("28x36", 20, None), ("56x75", 40, 100)):
        case, work = f"{grid} K=21 D=512", f"mean field, {grid}, K=21"
        goals += [
            Goal(f"{work}, float32", "meanfield", f"{case} float32", share=share),
            Goal(f"{work}, bfloat16", "meanfield", f"{case} bfloat16", narrow, smaller),
        ]
    for grid, faster in (("14x18", 5), ("28x36", 12)):
        work, case = f"... with gradient, {grid}, K=21", f"{grid} K=21 D=512"
        goals += [
            Goal(f"{work}, float32", "meanfield_gradient", f"{case} float32", faster),
            Goal(f"{work}, bfloat16", "meanfield_gradient", f"{case} bfloat16"),
        ]
    for size, wide, narrow, smaller in (
        ("14x18 K=21", 2.5, 4, None),
        ("28x36 K=21", 3.5, 8, None),
        ("28x36 K=60", 2.5, 8, 50),
    ):
        case, work = f"{size} D=512", f"loss with gradient, {size.replace(' ', ', ')}"
        goals += [
            Goal(f"{work}, float32", "pairwise_loss", f"{case} float32", wide),
            Goal(f"{work}, bfloat16", "pairwise_loss", f"{case} bfloat16", narrow, smaller),
        ]
    return tuple(goals)


GOALS = (
    *_operators(),
    Goal("dense CRF, 480x360, K=11", "densecrf", "480x360 K=11 n=10", 8, plain="pydensecrf2"),
    Goal("dense CRF, 500x375, K=21", "densecrf", "500x375 K=21 n=10", 8, plain="pydensecrf2"),
    Goal("VGG-16 blocks, 450x600", "end_to_end", "paper blocks B=1"),
)


def share_of_peak(record: dict[str, Any], case: str, seconds: float) -> float | None:
    """Operations of a case over what multiply-adds on registers do meanwhile; None if unknown."""
    name = f"{case.split()[-1]}_multiply_add_operations_per_second"
    peak, operations = record.get("ceilings", {}).get(name), record.get("operations", {}).get(case)
    return None if peak is None or operations is None else operations / seconds / peak


def row(goal: Goal, record: dict[str, Any]) -> str:
    """A line of the table."""
    found = {(m["case"], m["contender"]): m for m in record.get("measurements", [])}
    ours = found.get((goal.case, "deepcrf_ext"), {})
    plain = found.get((goal.case, goal.plain), {})
    time, peak = ours.get("median"), ours.get("peak_bytes")
    plain_time, plain_peak = plain.get("median"), plain.get("peak_bytes")
    share = share_of_peak(record, goal.case, time) if time else None
    cells = (
        f"{time * 1e3:.1f} ms" if time else "-",
        f"{plain_time * 1e3:.1f} ms" if plain_time else plain.get("left_out") or "-",
        f"{goal.faster:g}x" if goal.faster else "",
        f"{plain_time / time:.1f}x" if time and plain_time else "-",
        f"1/{goal.smaller:.0f}" if goal.smaller else "",
        f"1/{plain_peak / max(peak, 1):.0f}" if plain_peak and peak is not None else "-",
        f"{goal.share:.0%}" if goal.share else "",
        f"{share:.0%}" if share is not None else "",
    )
    return f"{goal.work:48}" + "".join(f"{cell:>13}" for cell in cells)


def main() -> None:
    """Prints the table; a dash where there is no record."""
    names = ("this", "PyTorch's", "goal", "faster", "goal", "memory", "goal", "of peak")
    print(f"\n{'goals; in bfloat16, with AMX':48}" + "".join(f"{name:>13}" for name in names))
    records: dict[str, dict[str, Any]] = {}
    for goal in GOALS:
        path = result_path(goal.record, CPU, "json")
        if goal.record not in records:
            records[goal.record] = (
                json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            )
        print(row(goal, records[goal.record]))
    print("PyTorch's: eager; of the dense CRF pydensecrf2. memory: peak above the inputs.")
    peaks = {
        name.split("_")[0]: rate / 1e9
        for record in records.values()
        for name, rate in record.get("ceilings", {}).items()
        if name.endswith("_multiply_add_operations_per_second")
    }
    text = ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in peaks.items())
    print(f"of peak: of multiply-adds on registers, all threads: {text or 'not measured'}.")


if __name__ == "__main__":
    run_command(main)
