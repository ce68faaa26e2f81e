"""`python -m deepcrf_ext.tune_dense_crf`: parameters of the dense CRF for any trained model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import (
    add_mask_options,
    add_measuring_options,
    add_row_option,
    given_mask_options,
    mask_settings,
    open_split,
    output_folder,
)
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.cli.view_options import add_view_options, views_of
from deepcrf_ext.data.reduced import spread
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.dense_crf_search import (
    MaskProblem,
    ModelProblem,
    Objective,
    Problem,
    Trial,
    TrialScores,
    best_trial,
    search,
)
from deepcrf_ext.evaluation.mask_classes import count_classes
from deepcrf_ext.evaluation.mask_files import pair_masks
from deepcrf_ext.evaluation.prediction import named_variant
from deepcrf_ext.evaluation.views import ONE_VIEW
from deepcrf_ext.models.refine import NUMBERS, DenseCRFSettings
from deepcrf_ext.ops.dense_crf_params import PRESETS
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.pictures.scores import search_plot
from deepcrf_ext.records.checkpoint import load_model
from deepcrf_ext.records.provenance import made_by, provenance
from deepcrf_ext.whole_files import write_json

_DESCRIPTION = """Search the parameters of the dense CRF (row full) for a trained model.

Of a checkpoint, the networks run once an image; the marginals of the nodes stay in memory. Without
one, --image-folder, --mask-folder and --truth-folder hold images, masks of any model (as for
deepcrf_ext.refine) and true labels. The search starts from the published presets, then draws trials
around the best so far, from wide to narrow. Writes

  dense_crf.json  the best parameters, for --dense-crf-params of the other commands
  trials.json     every trial with its scores, and how it came about
  trials.png      the score against each parameter

after every round, so that Ctrl-C keeps what was found. Search on val and report on test: scores on
the images of the search flatter its result."""


_FOLDERS = {
    "image": "images",
    "mask": "masks of any model",
    "truth": "true label maps, 255 where they are not known",
}


def _write(
    folder: Path,
    record: dict[str, Any],
    objective: Objective,
    before: TrialScores,
    trials: list[Trial],
) -> None:
    best = best_trial(trials, objective)
    record = {
        **record,
        "objective": objective,
        "before": before.as_dict(),
        "best": best.as_dict(),
        "trials": [trial.as_dict() for trial in trials],
    }
    write_json(folder / "trials.json", record)
    write_json(folder / "dense_crf.json", best.settings.as_dict())
    search_plot(
        {name: [getattr(trial.settings.params, name) for trial in trials] for name in NUMBERS},
        [getattr(trial.scores, objective) for trial in trials],
        getattr(before, objective),
        f"{objective}, %",
        folder / "trials.png",
    )


def _report(before: TrialScores, trials: list[Trial], objective: Objective) -> str:
    best = best_trial(trials, objective)
    lines = [f"{'':16}{'mean IoU':>10}{'boundary F1':>13}{'pixel acc.':>12}"]
    rows = [("no dense CRF", before)]
    for name, params in PRESETS.items():
        rows += [(name, t.scores) for t in trials if t.round == 0 and t.settings.params == params]
    for name, scores in [*rows, ("best", best.scores)]:
        mean_iou, f1, accuracy = (100 * value for value in vars(scores).values())
        lines.append(f"{name:16}{mean_iou:10.2f}{f1:13.2f}{accuracy:12.2f}")
    chosen = ", ".join(f"{name} {value:.3g}" for name, value in best.settings.as_dict().items())
    lines.append(f"best: {chosen}")
    if not getattr(best.scores, objective) > getattr(before, objective):
        lines.append("no trial is better than no dense CRF")
    return "\n".join(lines)


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.tune_dense_crf", _DESCRIPTION)
    add_measuring_options(parser, "search on", "tune-DATASET-SPLIT", checkpoint_required=False)
    for noun, text in _FOLDERS.items():
        parser.add_argument(
            f"--{noun}-folder", type=Path | None, help=f"Without a checkpoint: folder of {text}."
        )
    add_mask_options(parser)
    add_row_option(parser)
    add_view_options(parser)
    parser.add_argument(
        "--trials",
        type=PositiveInt,
        default=48,
        help="How many parameters to try. One takes about 0.2 s an image of 480x360 pixels with "
        "11 classes on a CPU core.",
    )
    parser.add_argument(
        "--images",
        type=PositiveInt,
        default=50,
        help="How many images to search on, spread evenly over the split; all if it has fewer.",
    )
    parser.add_argument(
        "--dense-crf-iterations",
        "--iterations",
        type=NonNegativeInt,
        default=DenseCRFSettings.iterations,
        help="Mean-field iterations of the dense CRF; written with the parameters.",
    )
    parser.add_argument(
        "--objective",
        type=Objective,
        default="mean_iou",
        help="Score to make high: mean_iou, or boundary_f1 (see deepcrf_ext.evaluate).",
    )
    parser.add_argument(
        "--seed", type=NonNegativeInt, default=0, help="Seed of the trials that are drawn."
    )
    return parser


def _model_problem(
    arguments: Namespace, argv: Sequence[str], device: torch.device
) -> tuple[Problem, dict[str, Any], str]:
    """The images of a split with a checkpoint's marginals, their record, and what comes next."""
    model, config, metadata = load_model(arguments.checkpoint, device)
    variant = named_variant(model, arguments.row)
    dataset = open_split(arguments, config, metadata)
    indices = spread(len(dataset), arguments.images)
    views = views_of(arguments)
    problem = ModelProblem(model, variant, dataset, indices, config.amp, views)
    made = provenance("tune_dense_crf", argv, arguments, config, metadata, device, len(indices))
    record = {**made, "views": vars(views)}
    checkpoint = shlex.quote(str(arguments.checkpoint))
    return problem, record, f"evaluate --checkpoint {checkpoint} --rows all"


def _mask_problem(
    arguments: Namespace, argv: Sequence[str], device: torch.device
) -> tuple[Problem, dict[str, Any], str]:
    """Images of folders with masks and truth, their record, and what comes next."""
    folders = [getattr(arguments, f"{noun}_folder") for noun in _FOLDERS]
    if None in folders or arguments.output is None:
        raise InputError(
            "--checkpoint, or --image-folder, --mask-folder, --truth-folder and --output, must be "
            "given"
        )
    if views_of(arguments) != ONE_VIEW:
        raise InputError("scales, flip, window and the like: go with --checkpoint")
    if arguments.row is not None:
        raise InputError("--row: goes with --checkpoint")
    patterns = (arguments.image_pattern, arguments.mask_pattern, arguments.truth_pattern)
    pairs, problems = pair_masks(folders[0], folders[1], folders[2], patterns)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    known = [pair for pair in pairs if pair.truth is not None]
    if not known:
        raise InputError(f"{folders[2]}: holds no truth of a name of the {len(pairs)} masks")
    masks = count_classes(known, mask_settings(arguments), workers=2)
    files = [known[index] for index in spread(len(known), arguments.images)]
    record = {
        **made_by("tune_dense_crf", argv, device),
        "data": {
            **{noun: str(folder) for noun, folder in zip(_FOLDERS, folders, strict=True)},
            "images": len(files),
        },
        "masks": asdict(masks),
    }
    following = ["refine", *map(str, folders[:2]), "--output", "REFINED"]
    following += given_mask_options(arguments)
    return MaskProblem(files, masks, device), record, shlex.join(following)


def _run(argv: Sequence[str]) -> None:
    arguments = parsing.parse(_parser(), argv)
    device = choose_device(arguments.device)
    given = [f"--{noun}-folder" for noun in _FOLDERS if getattr(arguments, f"{noun}_folder")]
    given += given_mask_options(arguments)[::2]
    if arguments.checkpoint is not None and given:
        raise InputError(f"{given[0]}: goes without --checkpoint")
    make = _mask_problem if arguments.checkpoint is None else _model_problem
    problem, record, following = make(arguments, argv, device)
    folder = output_folder(arguments, "tune")
    record["seed"] = arguments.seed
    objective = arguments.objective
    before, trials = search(
        problem,
        arguments.trials,
        arguments.dense_crf_iterations,
        objective,
        arguments.seed,
        lambda before, trials: _write(folder, record, objective, before, trials),
    )
    print(_report(before, trials, objective))
    found = shlex.quote(str(folder / "dense_crf.json"))
    print(
        f"{len(trials)} trials on {len(problem)} images: {folder} (dense_crf.json, trials.json, "
        f"trials.png); next\n  python -m deepcrf_ext.{following} --dense-crf-params {found}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
