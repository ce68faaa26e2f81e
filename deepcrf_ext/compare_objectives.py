"""`python -m deepcrf_ext.compare_objectives`: training objectives, one start, one budget."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path

from jsonargparse import ArgumentParser

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.config import OPTIMISERS, PRESETS, ObjectiveName, PhaseConfig, TrainConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.paper.objectives import MODES, NOT_SHARED, Comparison, Settings
from deepcrf_ext.records.provenance import command_line
from deepcrf_ext.records.run_folder import create_run_folder, refuse_used
from deepcrf_ext.training.interrupt import Stopped, StopRequest

DESCRIPTION = """Trains one model by several objectives, from the same weights on the same images.

First the unaries alone train for --start-epochs epochs and the relations start from them, once for
all modes. Then every mode of --modes trains on, each with the whole learning-rate schedule, for
--epochs epochs, or for the epochs that fit into --seconds of training steps. Steps are timed in
turns at the beginning, so that other work on the machine slows no mode more than another.
Validation does not count.

OUTPUT gets a run folder a mode (`evaluate` and `predict` take them), comparison.png (validation
loss and mean IoU against steps and seconds), comparison.md (the table that is printed) and
comparison.json (all figures, the settings, and the command, commit and machine that made each
mode). They are written after every mode; a run that was stopped goes on with --resume OUTPUT. A
mode whose loss is not finite ends there and is reported so; a phase of the mode with a smaller
lr_factor may be what it needs.

Example, three minutes of training a mode:
  python -m deepcrf_ext.compare_objectives --seconds 180 --output runs/compare"""


def make_parser() -> ArgumentParser:
    """The options: those of the comparison and the settings of training that modes share."""
    parser = parsing.make_parser("python -m deepcrf_ext.compare_objectives", DESCRIPTION)
    parser.add_argument(
        "--modes",
        type=dict[str, ObjectiveName | tuple[PhaseConfig, ...]],
        default=MODES,
        help="The objective of every mode by the mode's name: an objective, or phases as of "
        "train's --objective.",
    )
    parser.add_argument(
        "--seconds",
        type=float | None,
        help="Train every mode for the epochs, at least one a phase, that take this many seconds, "
        "in place of --epochs.",
    )
    parser.add_argument(
        "--start-epochs",
        type=int,
        default=6,
        help="Epochs of the unaries alone before all modes; 0 starts from random weights.",
    )
    parser.add_argument("--resume", metavar="OUTPUT", help="Go on with a comparison; given alone.")
    parser.add_class_arguments(TrainConfig, skip=NOT_SHARED)
    return parser


def parse_settings(argv: Sequence[str]) -> Settings:
    """The settings of a comparison. Raises InputError for options that do not fit."""
    parser = make_parser()
    first = parsing.parse_first(parser, argv)
    defaults = {**PRESETS[first.model.preset], **OPTIMISERS[first.optim.optimiser]}
    parser.set_defaults({name: v for name, v in defaults.items() if name not in NOT_SHARED})
    values = vars(parsing.parse(parser, argv))
    names = [field.name for field in fields(TrainConfig) if field.name not in NOT_SHARED]
    train = TrainConfig(**{name: values[name] for name in names}, warm_start=0.0)
    if train.output is None:
        train.output = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-objectives"
    return Settings(train, values["modes"], values["seconds"], values["start_epochs"])


def parse_resume(argv: Sequence[str]) -> Settings:
    """The settings of a comparison to go on with. Raises InputError for what is none."""
    parser = ArgumentParser(
        prog="python -m deepcrf_ext.compare_objectives", exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--resume", type=Path, required=True)
    try:
        folder = parsing.parse(parser, argv).resume
    except InputError as error:
        raise InputError(f"{error}; --resume is given alone") from error
    file = folder / "config.yaml"
    if not file.is_file():
        raise InputError(f"resume: {folder} is not the folder of a comparison")
    return parse_settings(["--config", str(file), "--output", str(folder)])


def compare(settings: Settings, command: str, new: bool) -> int:
    """Trains the modes that are not done yet and reports; returns the exit code.

    new: make the output folder, once the data are known to be usable. The code is 130 or 143 after
    Ctrl-C or SIGTERM. Raises InputError when settings or data cannot be used, OSError when a file
    cannot be written.
    """
    begin = time.monotonic()
    stop = StopRequest()
    comparison = Comparison(settings, stop, command)
    if new:
        create_run_folder(settings.train)
        settings.write()
    try:
        with stop:
            comparison.run()
    except Stopped as stopped:
        folder = shlex.quote(str(settings.folder))
        print(
            f"stopped; continue with\n  python -m deepcrf_ext.compare_objectives --resume {folder}",
            file=sys.stderr,
        )
        return stopped.exit_code
    except InputError:
        if new and not comparison.has_trained():
            # The mended command may take its name.
            shutil.rmtree(settings.folder, ignore_errors=True)
        raise
    print((settings.folder / "comparison.md").read_text(encoding="utf-8"))
    minutes = (time.monotonic() - begin) / 60
    print(f"done in {minutes:.1f} min: {settings.folder} (comparison.png, .md, .json)")
    return 0


def _run(argv: Sequence[str]) -> int:
    command = command_line("compare_objectives", argv)
    if parsing.is_resume(argv):
        return compare(parse_resume(argv), command, new=False)
    settings = parse_settings(argv)
    refuse_used(settings.folder)
    return compare(settings, command, new=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
