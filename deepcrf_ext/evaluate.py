"""`python -m deepcrf_ext.evaluate`: scores of a trained model before and after the CRF."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import (
    add_dense_crf_options,
    add_measuring_options,
    dense_crf_settings,
    open_split,
    output_folder,
)
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.cli.view_options import add_view_options, views_of
from deepcrf_ext.evaluation.evaluation import Evaluation, ImageScores, choose_variants, evaluate
from deepcrf_ext.models import VARIANTS
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.parallel.world import World, join
from deepcrf_ext.pictures.scores import class_plot, confusion_plot
from deepcrf_ext.records.checkpoint import load_model
from deepcrf_ext.records.provenance import provenance
from deepcrf_ext.whole_files import write_json, write_whole

_DESCRIPTION = """Measure a trained model on a split of a data set, before (unary only) and
after the CRF. Prints a table and writes evaluation.json (all scores, confusion matrices, settings,
versions and times), per_image.csv (scores of each image and row by itself, fractions in 0..1),
iou.png, boundary_f1.png and confusion.png. Mean IoU is over the classes that
occur in the truth or in the prediction of the split. Boundary F1 (Csurka et al. 2013) compares the
outlines of the regions, within 0.75 % of the diagonal of the image; of each class it is the mean
over images, and then the mean over classes. NLL is the mean of -log of the probability of the true
label; the calibration error is how far confidence and accuracy lie apart (Guo et al. 2017, 15
bins). Pixels labelled 255 are not counted. Labels are
compared at the full size of each image. Started by torchrun, every process measures a share of
the images."""


UNTRAINED = "unary-1scale"
"""The row whose network `deepcrf_ext.train` leaves out unless it is asked for."""


def format_table(result: Evaluation, classes: Sequence[str]) -> str:
    """Per-class IoU and the other scores, a column for each variant; all but the NLL in percent."""
    heads = [
        *classes,
        "mean IoU",
        "pixel accuracy",
        "class accuracy",
        "boundary F1",
        "calibration error",
        "NLL, nats",
    ]
    columns = {name: _column(result, name) for name in result.scores}
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


def _column(result: Evaluation, name: str) -> list[str]:
    score, probabilities = result.scores[name], result.probabilities[name]
    fractions = [
        *score.iou,
        score.mean_iou,
        score.pixel_accuracy,
        score.class_accuracy,
        result.boundaries[name].mean_f1,
        probabilities.calibration_error,
    ]
    cells = [*(f"{100 * value:.1f}" for value in fractions), f"{probabilities.nll:.3f}"]
    return [cell.replace("nan", "-") for cell in cells]


def _write_per_image(path: Path, scores: Sequence[ImageScores]) -> None:
    """One line for each image and row; a cell is empty where a score is undefined."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(ImageScores)])
    writer.writeheader()
    for row in map(asdict, scores):
        undefined = [
            key for key, value in row.items() if isinstance(value, float) and math.isnan(value)
        ]
        writer.writerow({**row, **dict.fromkeys(undefined, "")})
    # Names that are no UTF-8, as of old archives, are written as the bytes they are.
    with write_whole(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


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
    add_view_options(parser)
    return parser


def _run(argv: Sequence[str]) -> None:
    arguments = parsing.parse(_parser(), argv)
    with join(arguments.device) as world:
        _evaluate(arguments, argv, world)


def _evaluate(arguments: Namespace, argv: Sequence[str], world: World) -> None:
    views = views_of(arguments)
    device = choose_device(arguments.device)
    model, config, metadata = load_model(arguments.checkpoint, device)
    variants = choose_variants(model, arguments.rows)
    uses_dense_crf = any(variant.dense_crf for variant in variants.values())
    dense_crf = dense_crf_settings(arguments, uses_dense_crf, "--rows full, or all")
    dataset = open_split(arguments, config, metadata)
    folder = output_folder(arguments, "evaluate")
    result = evaluate(model, dataset, variants, config.amp, dense_crf, world, views=views)
    if not world.is_main:
        return
    classes = dataset.classes
    print(format_table(result, classes))
    times = [f"networks {1000 * result.network_seconds:.1f}"]
    times += [f"{name} {1000 * seconds:.1f}" for name, seconds in result.variant_seconds.items()]
    print(f"\n{result.images} images, ms per image on {device}: {', '.join(times)}")
    report = {
        **provenance("evaluate", argv, arguments, config, metadata, device, result.images),
        "processes": world.size,
        "dense_crf": dense_crf.as_dict() if uses_dense_crf else None,
        "views": vars(views),
        "seconds_per_image": {"networks": result.network_seconds, "rows": result.variant_seconds},
        "rows": {
            name: {
                **scores.as_dict(classes),
                **result.boundaries[name].as_dict(classes),
                **result.probabilities[name].as_dict(),
            }
            for name, scores in result.scores.items()
        },
    }
    write_json(folder / "evaluation.json", report)
    _write_per_image(folder / "per_image.csv", result.per_image)
    ious = {name: scores.iou for name, scores in result.scores.items()}
    class_plot(ious, classes, "IoU, %", folder / "iou.png")
    f1s = {name: scores.f1 for name, scores in result.boundaries.items()}
    class_plot(f1s, classes, "boundary F1, %", folder / "boundary_f1.png")
    confusions = {name: scores.confusion for name, scores in result.scores.items()}
    confusion_plot(confusions, classes, folder / "confusion.png")
    if "all" in (arguments.rows or ()) and UNTRAINED not in variants:
        print(f"Without {UNTRAINED}, whose network train --model.potentials all adds")
    print(f"Results: {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
