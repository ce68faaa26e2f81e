"""`python -m deepcrf_ext.reproduce`: the paper's tables and figures, from training to report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import add_dense_crf_options, add_device_option, dense_crf_settings
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.config import OPTIMISERS, DataSource, TrainConfig
from deepcrf_ext.data import DATASETS
from deepcrf_ext.errors import InputError
from deepcrf_ext.paper.budgets import BUDGETS, Plan, recipe
from deepcrf_ext.paper.reproduction import Reproduction
from deepcrf_ext.records.provenance import command_line
from deepcrf_ext.training.interrupt import Stopped

_DESCRIPTION = """Reproduce the paper's experiments: train, measure every row of its Table I and
the gains of each class as in Table II, draw pictures as in Figures 6-10, and write report.html, one
file that opens anywhere. Finished work is kept: end the command at any time, run it again, and it
goes on.

Writes below the output folder: report.html and results.json (every figure, with the command, the
commit, the versions and the machine that made it), train/ (a run folder as of deepcrf_ext.train),
steps/ (one JSON file for each finished step), figures/ and pictures/."""


_CUTS = {
    "train_images": "Training images to use, spread over the split. Set by the budget; null: all.",
    "eval_images": "Images of each measured split to use. Set by the budget; null: all.",
    "max_side": "Longest side in pixels that images are shrunk to. Set by the budget; null: none.",
}
"""Options of the command and fields of `Plan` that cut the data down, with their help."""


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.reproduce", _DESCRIPTION)
    parser.add_class_arguments(DataSource, "data")
    budgets = "; ".join(f"{name}: {text}" for name, text in BUDGETS.items())
    parser.add_argument("--budget", default="tiny", help=f"How much is spent ({budgets}).")
    parser.add_argument("--output", type=Path, required=True, help="Folder for everything.")
    parser.add_argument(
        "--splits",
        nargs="+",
        type=str,
        help="Splits to measure. Settings are to be chosen on val; give test once they are. "
        "Default: that of the training's validation.",
    )
    add_device_option(parser)
    for name, text in _CUTS.items():
        parser.add_argument(f"--{name}", type=PositiveInt | None, help=text)
    parser.add_argument(
        "--examples", type=PositiveInt, default=4, help="Pictures of each kind in the report."
    )
    add_dense_crf_options(parser)
    parser.add_class_arguments(TrainConfig, "train", skip={"output", "device"})
    return parser


def parse(argv: Sequence[str]) -> tuple[Plan, Path]:
    """The plan and the output folder of a command line.

    The settings are the budget's, the optimiser's, then the options'; later ones override.

    Raises InputError for options that do not fit.
    """
    parser = _parser()
    first = parsing.parse_first(parser, argv)
    dataset = first.data.dataset
    for name, value, known in (
        ("data.dataset", dataset, DATASETS),
        ("budget", first.budget, BUDGETS),
    ):
        if value not in known:
            raise InputError(f"{name}: got {value!r}, must be one of {', '.join(known)}")
    optimiser = OPTIMISERS[first.train.optim.optimiser]
    parser.set_defaults(
        {
            **recipe(dataset, first.budget),
            **{f"train.{name}": value for name, value in optimiser.items()},
        }
    )
    options = parsing.parse(parser, argv)
    source = {field.name: getattr(options.data, field.name) for field in fields(DataSource)}
    for name in source:
        if getattr(options.train.data, name) != getattr(DataSource, name):
            raise InputError(f"train.data.{name}: must be given as --data.{name.replace('_', '-')}")
    splits = options.splits or [options.train.data.val_split]
    for split in splits:
        if DATASETS[dataset] and split not in DATASETS[dataset]:
            raise InputError(
                f"splits: got {split!r}, must be of {dataset}'s {', '.join(DATASETS[dataset])}"
            )
        if (dataset, split) == ("voc", "test"):
            raise InputError(
                "splits: voc's test has no public labels; deepcrf_ext.voc_submission writes the "
                "archive for its server"
            )
    data = replace(options.train.data, **source)
    train = replace(options.train, data=data, device=options.device)
    cuts = {name: None if options[name] is None else int(options[name]) for name in _CUTS}
    plan = Plan(
        train,
        tuple(dict.fromkeys(splits)),
        int(options.examples),
        dense_crf=dense_crf_settings(options, True, "the row full"),
        **cuts,
    )
    return plan, options.output


def _run(argv: Sequence[str]) -> int:
    plan, folder = parse(argv)
    command = command_line("reproduce", argv)
    try:
        report = Reproduction(plan, folder, command).run()
    except Stopped as stopped:
        print(f"stopped; the same command goes on:\n  {command}", file=sys.stderr)
        return stopped.exit_code
    print(f"report: {report}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for bad input, 130 or 143 when stopped."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
