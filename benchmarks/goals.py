"""The goals for the CPU beside what the records of a run say: python benchmarks/goals.py

With DEEPCRF_CPU_ISA, the records that were taken with that instruction set.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from harness import result_path

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Goal:
    """How many times faster than the baseline a case is to be, and on how many times less memory.

    record: the name that the file of results starts with. plain_case: the baseline's case, where it
    is another one.
    """

    work: str
    record: str
    case: str
    faster: float | None = None
    smaller: float | None = None
    plain: str = "eager"
    plain_case: str | None = None


def _loss_goals() -> tuple[Goal, ...]:
    cases = (
        ("5,124 edges, K=21", "14x18 K=21 D=512", None),
        ("100,740 edges, K=21", "28x36 K=21 D=512", 10.0),
        ("100,740 edges, K=60", "28x36 K=60 D=512", 20.0),
    )
    goals: list[Goal] = []
    for title, case, smaller in cases:
        wide, narrow = f"{case} float32", f"{case} bfloat16"
        work = f"loss, {title}"
        goals += [
            Goal(f"{work}, float32", "pairwise_loss", wide, 3, smaller),
            Goal(f"{work}, bfloat16", "pairwise_loss", narrow, 5, smaller, plain_case=wide),
            Goal(f"{work}, bfloat16, eager too", "pairwise_loss", narrow),
        ]
    return tuple(goals)


GOALS = (
    Goal("mean field, 14x18, K=21", "meanfield", "14x18 K=21 D=512 float32", 10),
    Goal("mean field, 28x36, K=21", "meanfield", "28x36 K=21 D=512 float32", 20),
    Goal("mean field, 56x75, K=21", "meanfield", "56x75 K=21 D=512 float32", 40, 20),
    Goal("... gradient, 14x18, K=21", "meanfield_gradient", "14x18 K=21 D=512 float32"),
    Goal("... gradient, 28x36, K=21", "meanfield_gradient", "28x36 K=21 D=512 float32"),
    *_loss_goals(),
    Goal("dense CRF, 480x360, K=11", "densecrf", "480x360 K=11 n=10", 4, plain="pydensecrf2"),
    Goal("dense CRF, 500x375, K=21", "densecrf", "500x375 K=21 n=10", 4, plain="pydensecrf2"),
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
    plain = found.get((goal.plain_case or goal.case, goal.plain), {})
    time, peak = ours.get("median"), ours.get("peak_bytes")
    plain_time, plain_peak = plain.get("median"), plain.get("peak_bytes")
    share = share_of_peak(record, goal.case, time) if time else None
    cells = (
        f"{time * 1e3:.1f} ms" if time else "-",
        f"{plain_time * 1e3:.1f} ms" if plain_time else plain.get("left_out") or "-",
        f"{goal.faster:.0f}x" if goal.faster else "",
        f"{plain_time / time:.1f}x" if time and plain_time else "-",
        f"1/{goal.smaller:.0f}" if goal.smaller else "",
        f"1/{plain_peak / max(peak, 1):.0f}" if plain_peak and peak is not None else "-",
        f"{share:.0%}" if share is not None else "",
    )
    return f"{goal.work:48}" + "".join(f"{cell:>13}" for cell in cells)


def main() -> None:
    """Prints the table; a dash where there is no record."""
    names = ("this", "PyTorch's", "goal", "faster", "goal", "memory", "of peak")
    print(f"\n{'goals; of two cores with AVX-512':48}" + "".join(f"{name:>13}" for name in names))
    records: dict[str, dict[str, Any]] = {}
    for goal in GOALS:
        path = result_path(goal.record, CPU, "json")
        if goal.record not in records:
            records[goal.record] = json.loads(path.read_text()) if path.exists() else {}
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
    main()
