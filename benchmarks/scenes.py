"""The rows of the paper's ablation on rendered scenes, as `train` without settings gives them.

    python benchmarks/scenes.py [--seeds '[0, 1, 2]'] [--output scenes-small.json]

For each seed, of weights and of images: trains the preset small with all potentials, measures every
row on val and test, fits the weights of the relations to val and measures again; the commands are
those of the record. What is in runs/scenes-SEED already is not done again. Prints the mean of each
row over the seeds, its lowest and its highest. The default is the record of benchmarks/results.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from deepcrf_ext.records.environment import environment

SPLITS = ("val", "test")
SCORES = ("mean_iou", "pixel_accuracy", "mean_boundary_f1", "nll", "calibration_error")
FACTS = ("torch", "CPU", "threads", "instruction set")
RESULT = Path(__file__).parent / "results" / "scenes-small.json"


def run(command: str, result: Path) -> None:
    """Runs a command of the package, unless its result is there."""
    if not result.exists():
        subprocess.run([sys.executable, *command.split()[1:]], check=True)


def measured(checkpoint: str, rows: str) -> dict[str, Any]:
    """By split: the rows of a checkpoint with their scores, the command and the commit."""
    records = {}
    for split in SPLITS:
        file = Path(checkpoint) / f"evaluate-scenes-{split}" / "evaluation.json"
        command = f"python -m deepcrf_ext.evaluate --checkpoint {checkpoint} --rows {rows}"
        run(f"{command} --data.split {split}", file)
        report = json.loads(file.read_text(encoding="utf-8"))
        records[split] = {
            "command": report["command"],
            "commit": report["commit"],
            "images": report["data"]["images"],
            "rows": {
                name: {**{score: row[score] for score in SCORES}, "iou": row["iou"]}
                for name, row in report["rows"].items()
            },
        }
    return records


def measure_seed(seed: int) -> dict[str, Any]:
    """The record of one seed."""
    folder = f"runs/scenes-{seed}"
    train = f"python -m deepcrf_ext.train --model.potentials all --seed {seed} --output {folder}"
    run(train, Path(folder, "grid.png"))
    trained = measured(folder, "all")
    calibrated = f"{folder}/calibrate-scenes-val"
    calibration = Path(calibrated, "calibration.json")
    run(f"python -m deepcrf_ext.calibrate --checkpoint {folder}", calibration)
    fitted = json.loads(calibration.read_text(encoding="utf-8"))
    return {
        "train": train,
        "config": fitted["config"],
        "trained": trained,
        "calibration": {key: fitted[key] for key in ("command", "commit", "weights", "nll")},
        "calibrated": measured(calibrated, "unary-3scales 1unary+2pair full"),
    }


def table(seeds: Sequence[dict[str, Any]], state: str, score: str, factor: float) -> str:
    """A line for each row: the mean over the seeds, the lowest and the highest, by split."""
    lines = []
    for name in seeds[0][state]["val"]["rows"]:
        cells = []
        for split in SPLITS:
            values = [factor * seed[state][split]["rows"][name][score] for seed in seeds]
            mean = sum(values) / len(values)
            cells.append(f"{mean:8.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"{name:16}{'  '.join(cells)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not done, writes the record and prints it."""
    parser = ArgumentParser(prog="python benchmarks/scenes.py", description=__doc__)
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="Seeds to run.")
    parser.add_argument("--output", type=Path, default=RESULT, help="The record.")
    arguments = parser.parse_args(argv)
    seeds = {seed: measure_seed(seed) for seed in arguments.seeds}
    facts, _ = environment()
    record = {"environment": {name: facts[name] for name in FACTS}, "seeds": seeds}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for state in ("trained", "calibrated"):
        for score, factor in (("mean_iou", 100), ("pixel_accuracy", 100), ("nll", 1)):
            print(
                f"{state}, {score}: val, test\n{table(list(seeds.values()), state, score, factor)}"
            )


if __name__ == "__main__":
    main()
