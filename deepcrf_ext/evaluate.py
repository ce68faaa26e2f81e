"""`python -m deepcrf_ext.evaluate`: scores of a trained model before and after the CRF."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import (
    add_dense_crf_options,
    add_measuring_options,
    dense_crf_settings,
    open_split,
    output_folder,
)
from deepcrf_ext.data import SegmentationDataset, read_ahead
from deepcrf_ext.evaluation.boundaries import BoundaryF1, BoundaryScores
from deepcrf_ext.evaluation.regions import Scores, SegmentationMetrics
from deepcrf_ext.models import VARIANTS, DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.parallel.device import autocast, choose_device
from deepcrf_ext.parallel.world import ALONE, World, join
from deepcrf_ext.pictures.scores import class_plot, confusion_plot
from deepcrf_ext.predict import label_pixels, named_variant
from deepcrf_ext.records.checkpoint import load_model
from deepcrf_ext.records.provenance import provenance

_DESCRIPTION = """Measure a trained model on a split of a data set, before (unary only) and
after the CRF. Prints a table and writes evaluation.json (all scores, confusion matrices, settings,
versions and times), iou.png, boundary_f1.png and confusion.png. Mean IoU is over the classes that
occur in the truth or in the prediction of the split. Boundary F1 (Csurka et al. 2013) compares the
outlines of the regions, within 0.75 % of the diagonal of the image; of each class it is the mean
over images, and then the mean over classes. Pixels labelled 255 are not counted. Labels are
compared at the full size of each image. Started by torchrun, every process measures a share of
the images."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    scores, boundaries: by row name.
    images: how many.
    network_seconds: mean time per image of all the networks.
    row_seconds: mean time per image of a row's inference and upsampling, by row name.
    """

    scores: dict[str, Scores]
    boundaries: dict[str, BoundaryScores]
    images: int
    network_seconds: float
    row_seconds: dict[str, float]


def before_and_after(model: DeepCRF) -> dict[str, Variant]:
    """The unary alone (if the model has one) and all its potentials.

    They are called as in `DeepCRF.variants`, or by the names of their potentials if not there.
    """
    crf = model.default_variant()
    rows = [Variant(crf.unary), crf] if crf.unary is not None and crf.relations else [crf]
    names = {row: name for name, row in model.variants().items()}
    return {names.get(row, "+".join(row.potentials)): row for row in rows}


def choose_variants(model: DeepCRF, names: Sequence[str] | None) -> dict[str, Variant]:
    """Rows by name: None gives `before_and_after`, "all" every row the model has potentials for.

    Raises InputError for an unknown row and for one whose potentials the model lacks.
    """
    if not names:
        return before_and_after(model)
    if "all" in names:
        return model.variants() or before_and_after(model)
    return {name: named_variant(model, name) for name in names}


@torch.inference_mode()
def evaluate(
    model: DeepCRF,
    dataset: SegmentationDataset,
    rows: Mapping[str, Variant],
    amp: bool | None = None,
    dense_crf: DenseCRFSettings | None = None,
    world: World = ALONE,
    *,
    on_labels: Callable[[int, str, torch.Tensor, torch.Tensor], None] | None = None,
) -> Evaluation:
    """Scores of several rows in one pass: each network runs once an image, rows share its energies.

    model: in eval mode, on the device to use. dataset: its classes are those of the model.
    amp: run the convolutions in bfloat16; None means where the device is fast at it.
    dense_crf: settings of the dense CRF of rows that have one.
    world: each process measures its share of the images; all get the scores of the whole.
    on_labels: called with the index of the image, the name of the row, its prediction and the truth
        (uint8 and int64 [H, W]), for scores of each image; its time is not counted.
    Raises InputError for a sample that cannot be read.
    """
    device = model.device
    names = dict.fromkeys(name for row in rows.values() for name in row.potentials)
    metrics = {name: SegmentationMetrics(model.num_classes) for name in rows}
    boundaries = {name: BoundaryF1(model.num_classes) for name in rows}
    network_seconds, row_seconds = 0.0, dict.fromkeys(rows, 0.0)
    indices = world.share(len(dataset))
    for index, (image, truth) in tqdm(
        zip(indices, read_ahead(dataset, indices), strict=True),
        "evaluate",
        len(indices),
        unit="image",
        leave=False,
        disable=not world.is_main,
    ):
        image = image.to(device)
        start = _now(device)
        with autocast(device, amp):
            energies = model.energies(image[None], names)
        network_seconds += (end := _now(device)) - start
        for name, row in rows.items():
            marginals = model.marginals(energies, row)[0]
            labels = label_pixels(marginals, image, row, dense_crf)
            start, end = end, _now(device)
            row_seconds[name] += end - start
            metrics[name].update(labels, truth)
            boundaries[name].update(labels.cpu().numpy(), truth.numpy())
            if on_labels is not None:
                on_labels(index, name, labels, truth)
            end = _now(device)
    for name in rows:
        metrics[name].add_up(world)
        boundaries[name].add_up(world)
    seconds = world.sum(torch.tensor([network_seconds, *row_seconds.values()], dtype=torch.float64))
    network_mean, *row_means = (seconds / max(len(dataset), 1)).tolist()
    return Evaluation(
        scores={name: metric.compute() for name, metric in metrics.items()},
        boundaries={name: metric.compute() for name, metric in boundaries.items()},
        images=len(dataset),
        network_seconds=network_mean,
        row_seconds=dict(zip(rows, row_means, strict=True)),
    )


def format_table(
    scores: Mapping[str, Scores], boundaries: Mapping[str, BoundaryScores], classes: Sequence[str]
) -> str:
    """Per-class IoU and the summary scores in percent, a column for each row of the ablation."""
    columns = {
        name: [
            f"{100 * value:.1f}".replace("nan", "-")
            for value in (*_column(score), boundaries[name].mean_f1)
        ]
        for name, score in scores.items()
    }
    heads = [*classes, "mean IoU", "pixel accuracy", "class accuracy", "boundary F1"]
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


def _now(device: torch.device) -> float:
    """Seconds, after all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.evaluate", _DESCRIPTION)
    add_measuring_options(parser, "measure", "evaluate-DATASET-SPLIT")
    parser.add_argument(
        "--rows",
        nargs="+",
        type=str,
        help=f"Rows of the ablation: any of {', '.join(VARIANTS)}; pairwise-NAME of any other; "
        'or "all" that the checkpoint has the networks for. full ends in a dense CRF over pixels. '
        "Default: the unary alone and the whole CRF without a dense one.",
    )
    add_dense_crf_options(parser)
    return parser


def _run(argv: Sequence[str]) -> None:
    arguments = parsing.parse(_parser(), argv)
    with join(arguments.device) as world:
        _evaluate(arguments, argv, world)


def _evaluate(arguments: Namespace, argv: Sequence[str], world: World) -> None:
    device = choose_device(arguments.device)
    model, config, metadata = load_model(arguments.checkpoint, device)
    rows = choose_variants(model, arguments.rows)
    uses_dense_crf = any(row.dense_crf for row in rows.values())
    dense_crf = dense_crf_settings(arguments, uses_dense_crf, "--rows full, or all")
    dataset = open_split(arguments, config, metadata)
    folder = output_folder(arguments, "evaluate")
    result = evaluate(model, dataset, rows, config.amp, dense_crf, world)
    if not world.is_main:
        return
    classes = dataset.classes
    report = {
        **provenance("evaluate", argv, arguments, config, metadata, device, result.images),
        "processes": world.size,
        "dense_crf": dense_crf.as_dict() if uses_dense_crf else None,
        "seconds_per_image": {"networks": result.network_seconds, "rows": result.row_seconds},
        "rows": {
            name: {**scores.as_dict(classes), **result.boundaries[name].as_dict(classes)}
            for name, scores in result.scores.items()
        },
    }
    (folder / "evaluation.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    ious = {name: scores.iou for name, scores in result.scores.items()}
    class_plot(ious, classes, "IoU, %", folder / "iou.png")
    f1s = {name: scores.f1 for name, scores in result.boundaries.items()}
    class_plot(f1s, classes, "boundary F1, %", folder / "boundary_f1.png")
    confusions = {name: scores.confusion for name, scores in result.scores.items()}
    confusion_plot(confusions, classes, folder / "confusion.png")
    print(format_table(result.scores, result.boundaries, classes))
    times = [f"networks {1000 * result.network_seconds:.1f}"]
    times += [f"{name} {1000 * seconds:.1f}" for name, seconds in result.row_seconds.items()]
    print(f"\n{result.images} images, ms per image on {device}: {', '.join(times)}")
    print(f"Results: {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return parsing.run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
