"""`python -m deepcrf_ext.evaluate`: scores of a trained model before and after the CRF."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

import deepcrf_ext
from deepcrf_ext import cli, visualise
from deepcrf_ext.checkpoint import load_model
from deepcrf_ext.config import TrainConfig, to_dict
from deepcrf_ext.data import DATASETS, SegmentationDataset, open_dataset, to_tensors
from deepcrf_ext.device import autocast, choose_device
from deepcrf_ext.errors import InputError
from deepcrf_ext.metrics import Scores, SegmentationMetrics
from deepcrf_ext.models import ROWS, DeepCRF, Row
from deepcrf_ext.predict import named_row, upsample_labels

_DESCRIPTION = """Measure a trained model on a split of a data set, before (unary only) and
after the CRF. Prints a table and writes evaluation.json (all scores, confusion matrices, settings,
versions and times), iou.png and confusion.png. Mean IoU is over the classes that occur in the truth
or in the prediction of the split; pixels labelled 255 are not counted. Labels are compared at the
full size of each image."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    scores: by row name.
    images: how many.
    network_seconds: mean time per image of all the networks.
    row_seconds: mean time per image of a row's inference and upsampling, by row name.
    """

    scores: dict[str, Scores]
    images: int
    network_seconds: float
    row_seconds: dict[str, float]


def before_and_after(model: DeepCRF) -> dict[str, Row]:
    """The unary alone (if the model has one) and all its potentials.

    They are called as in `ROWS`, or by the names of their potentials where they are not there.
    """
    full = model.full_row()
    rows = [Row(full.unary), full] if full.unary is not None and full.relations else [full]
    names = {row: name for name, row in ROWS.items()}
    return {names.get(row, "+".join(row.potentials)): row for row in rows}


def choose_rows(model: DeepCRF, names: Sequence[str] | None) -> dict[str, Row]:
    """Rows by name: None gives `before_and_after`, "all" every row the model has potentials for.

    Raises InputError for an unknown row and for one whose potentials the model lacks.
    """
    if not names:
        return before_and_after(model)
    if "all" in names:
        return model.rows() or before_and_after(model)
    return {name: named_row(model, name) for name in names}


@torch.inference_mode()
def evaluate(
    model: DeepCRF,
    dataset: SegmentationDataset,
    rows: Mapping[str, Row],
    amp: bool | None = None,
) -> Evaluation:
    """Scores of several rows in one pass: each network runs once an image, rows share its energies.

    model: in eval mode, on the device to use. dataset: its classes are those of the model.
    amp: run the convolutions in bfloat16; None means where the device is fast at it.
    Raises InputError for a sample that cannot be read.
    """
    device = next(model.parameters()).device
    names = dict.fromkeys(name for row in rows.values() for name in row.potentials)
    metrics = {name: SegmentationMetrics(model.num_classes) for name in rows}
    network_seconds, row_seconds = 0.0, dict.fromkeys(rows, 0.0)
    for index in tqdm(range(len(dataset)), "evaluate", unit="image", leave=False):
        image, truth = to_tensors(dataset[index])
        start = _now(device)
        with autocast(device, amp):
            energies = model.energies(image[None].to(device), names)
        network_seconds += (end := _now(device)) - start
        for name, row in rows.items():
            marginals = model.marginals(energies, row)[0]
            labels = upsample_labels(marginals, (truth.shape[0], truth.shape[1]))
            start, end = end, _now(device)
            row_seconds[name] += end - start
            metrics[name].update(labels, truth)
            end = _now(device)
    count = max(len(dataset), 1)
    return Evaluation(
        scores={name: metric.compute() for name, metric in metrics.items()},
        images=len(dataset),
        network_seconds=network_seconds / count,
        row_seconds={name: seconds / count for name, seconds in row_seconds.items()},
    )


def format_table(scores: Mapping[str, Scores], classes: Sequence[str]) -> str:
    """Per-class IoU and the summary scores in percent, a column for each row of the ablation."""
    columns = {
        name: [f"{100 * value:.1f}".replace("nan", "-") for value in _column(score)]
        for name, score in scores.items()
    }
    heads = [*classes, "mean IoU", "pixel accuracy", "class accuracy"]
    first = max(len(head) for head in [*heads, "IoU, %"])
    lines = [f"{'IoU, %':<{first}}" + "".join(f"  {name:>6}" for name in columns)]
    rule = "-" * len(lines[0])
    lines.append(rule)
    for index, head in enumerate(heads):
        if index == len(classes):
            lines.append(rule)
        cells = "".join(f"  {cells[index]:>{max(len(n), 6)}}" for n, cells in columns.items())
        lines.append(f"{head:<{first}}{cells}")
    return "\n".join(lines)


def _column(score: Scores) -> list[float]:
    return [*score.iou, score.mean_iou, score.pixel_accuracy, score.class_accuracy]


def package_commit() -> str | None:
    """The commit of the checkout that the package runs from, None for an installed package.

    "-dirty" is behind it when files differ from the commit.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _now(device: torch.device) -> float:
    """Seconds, after all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _open_data(
    arguments: Namespace, config: TrainConfig, metadata: Mapping[str, Any]
) -> SegmentationDataset:
    """The split to measure; raises InputError when its classes are not those of the checkpoint."""
    chosen = arguments.data
    name = chosen.dataset or config.data.dataset
    root = chosen.root or (config.data.root if name == config.data.dataset else None)
    dataset = open_dataset(name, root, chosen.split, config.seed)
    trained = list(metadata["classes"])
    if list(dataset.classes) != trained:
        raise InputError(
            f"data.dataset: {name} has {dataset.num_classes} classes "
            f"({', '.join(dataset.classes)}); the checkpoint was trained for {len(trained)} "
            f"({', '.join(trained)})"
        )
    arguments.data.dataset, arguments.data.root = name, root
    return dataset


def _parser() -> ArgumentParser:
    parser = cli.make_parser("python -m deepcrf_ext.evaluate", _DESCRIPTION)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="Run folder of a training (its best.pt, else its last.pt), or a checkpoint file.",
    )
    splits = "; ".join(f"{name}: {', '.join(names)}" for name, names in DATASETS.items())
    parser.add_argument("--data.split", default="val", help=f"Split to measure ({splits}).")
    parser.add_argument(
        "--data.dataset",
        type=str | None,
        help=f"Data set, one of {', '.join(DATASETS)}. Default: the one of the training.",
    )
    parser.add_argument(
        "--data.root",
        type=Path | None,
        help="Folder of the data. Default: the one of the training.",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        type=str,
        help=f'Rows of the ablation: any of {", ".join(ROWS)}; or "all" that the checkpoint '
        "has the networks for. Default: the unary alone and the whole CRF.",
    )
    parser.add_argument(
        "--output",
        type=Path | None,
        help="Folder for the results, replaced if there are any. "
        "Default: evaluate-DATASET-SPLIT beside the checkpoint.",
    )
    parser.add_argument(
        "--device", default="auto", help='"auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".'
    )
    return parser


def _run(argv: Sequence[str]) -> None:
    arguments = cli.parse(_parser(), argv)
    device = choose_device(arguments.device)
    model, config, metadata = load_model(arguments.checkpoint, device)
    rows = choose_rows(model, arguments.rows)
    dataset = _open_data(arguments, config, metadata)
    folder = arguments.output
    if folder is None:
        run = arguments.checkpoint
        beside = run if run.is_dir() else run.parent
        folder = beside / f"evaluate-{arguments.data.dataset}-{arguments.data.split}"
    folder.mkdir(parents=True, exist_ok=True)
    result = evaluate(model, dataset, rows, config.amp)
    classes = dataset.classes
    report = {
        "command": shlex.join(["python", "-m", "deepcrf_ext.evaluate", *argv]),
        "commit": package_commit(),
        "versions": {
            "deepcrf_ext": deepcrf_ext.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": str(device),
        "threads": torch.get_num_threads(),
        "checkpoint": {
            "path": str(arguments.checkpoint),
            "epoch": metadata["epoch"],
            "step": metadata["step"],
        },
        "data": {
            "dataset": arguments.data.dataset,
            "root": None if arguments.data.root is None else str(arguments.data.root),
            "split": arguments.data.split,
            "images": result.images,
        },
        "seconds_per_image": {"networks": result.network_seconds, "rows": result.row_seconds},
        "rows": {name: scores.as_dict(classes) for name, scores in result.scores.items()},
        "config": to_dict(config),
    }
    (folder / "evaluation.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    visualise.iou_plot({n: s.iou for n, s in result.scores.items()}, classes, folder / "iou.png")
    confusions = {name: scores.confusion for name, scores in result.scores.items()}
    visualise.confusion_plot(confusions, classes, folder / "confusion.png")
    print(format_table(result.scores, classes))
    times = [f"networks {1000 * result.network_seconds:.1f}"]
    times += [f"{name} {1000 * seconds:.1f}" for name, seconds in result.row_seconds.items()]
    print(f"\n{result.images} images, ms per image on {device}: {', '.join(times)}")
    print(f"Results: {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return cli.run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
