"""`python -m deepcrf_ext.compare_objectives`: training objectives, one start, one budget."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from deepcrf_ext import __version__, cli, comparison_report
from deepcrf_ext.checkpoint import load_checkpoint, load_weights
from deepcrf_ext.config import PRESETS, ObjectiveName, PhaseConfig, TrainConfig, to_dict
from deepcrf_ext.data import SegmentationDataset, open_dataset
from deepcrf_ext.device import choose_device
from deepcrf_ext.distributed import LostProcessError
from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.measuring import package_commit
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.loader import epoch_batches
from deepcrf_ext.training.run_folder import create_run_folder, write_config
from deepcrf_ext.training.stages import Stage, first_epochs
from deepcrf_ext.training.trainer import Trainer
from deepcrf_ext.training.validation import validate

DESCRIPTION = """Trains one model by several objectives, from the same weights on the same images.

First the unaries alone train for --start_epochs epochs and the relations start from them, once for
all modes. Then every mode of --modes trains on, each with the whole learning-rate schedule, for
--epochs epochs, or for the epochs that fit into --seconds of training steps. Steps are timed in
turns at the beginning, so that other work on the machine slows no mode more than another.
Validation does not count.

OUTPUT gets a run folder a mode (`evaluate` and `predict` take them), comparison.png (validation
loss and mean IoU against steps and seconds), comparison.md (the table that is printed) and
comparison.json (all figures, settings, the command). They are written after every mode; a run that
was stopped goes on with --resume OUTPUT. A mode whose loss is not finite ends there and is reported
so; a phase of the mode with a smaller lr_factor may be what it needs.

Example, three minutes of training a mode:
  python -m deepcrf_ext.compare_objectives --seconds 180 --output runs/compare"""

Objective = ObjectiveName | tuple[PhaseConfig, ...]
MODES: dict[str, Objective] = {
    "piecewise": "piecewise",
    "pseudo_likelihood": "pseudo_likelihood",
    "end_to_end": "end_to_end",
    "piecewise+end_to_end": (
        PhaseConfig("piecewise", 0.7),
        PhaseConfig("end_to_end", 0.3, lr_factor=0.1),
    ),
}
NOT_SHARED = {"objective", "warm_start"}
TIMED_STEPS = 7


@dataclass(frozen=True)
class Settings:
    """What is compared: `train` is common to all modes and holds the output folder."""

    train: TrainConfig
    modes: dict[str, Objective]
    seconds: float | None
    start_epochs: int

    def __post_init__(self) -> None:
        for name in self.modes:
            if not re.fullmatch(r"\w[\w.+-]*", name) or name == "start":
                raise InputError(
                    f"modes: the name {name!r} must be letters, digits and any of _ + - . inside, "
                    "other than 'start'"
                )
        if not self.modes:
            raise InputError("modes: must hold at least one")
        for mode in self.modes.values():
            parts = replace(self.train, objective=mode).phases()
            if self.seconds is None:
                first_epochs(parts, self.train.epochs)
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"seconds: {self.seconds} must be positive")
        if self.start_epochs < 0:
            raise InputError(f"start_epochs: {self.start_epochs} must not be negative")

    @property
    def folder(self) -> Path:
        """The output folder."""
        assert self.train.output is not None
        return self.train.output

    def as_dict(self) -> dict[str, Any]:
        """As the command's config file holds them."""
        shared = {key: v for key, v in to_dict(self.train).items() if key not in NOT_SHARED}
        modes = {
            name: mode if isinstance(mode, str) else [dataclasses.asdict(phase) for phase in mode]
            for name, mode in self.modes.items()
        }
        own = {"modes": modes, "seconds": self.seconds, "start_epochs": self.start_epochs}
        return {**shared, **own}

    def write(self) -> None:
        """Writes config.yaml into the output folder, which --config and --resume read."""
        text = yaml.safe_dump(self.as_dict(), sort_keys=False)
        (self.folder / "config.yaml").write_text(text)


def make_parser() -> ArgumentParser:
    """The options: those of the comparison and the settings of training that modes share."""
    parser = cli.make_parser("python -m deepcrf_ext.compare_objectives", DESCRIPTION)
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
        "--start_epochs",
        type=int,
        default=6,
        help="Epochs of the unaries alone before all modes; 0 starts from random weights.",
    )
    parser.add_argument("--resume", metavar="OUTPUT", help="Go on with a comparison; given alone.")
    parser.add_class_arguments(TrainConfig, skip=NOT_SHARED)
    return parser


def make_resume_parser() -> ArgumentParser:
    """The one option of a comparison to go on with."""
    parser = ArgumentParser(prog="python -m deepcrf_ext.compare_objectives", exit_on_error=False)
    parser.add_argument("--resume", type=Path, required=True)
    return parser


def parse_settings(argv: Sequence[str]) -> Settings:
    """The settings of a comparison. Raises InputError for options that do not fit."""
    parser = make_parser()
    preset = PRESETS[cli.parse(parser, argv).model.preset]
    parser.set_defaults({name: v for name, v in preset.items() if name not in NOT_SHARED})
    values = vars(cli.parse(parser, argv))
    names = [field.name for field in fields(TrainConfig) if field.name not in NOT_SHARED]
    train = TrainConfig(**{name: values[name] for name in names}, warm_start=0.0)
    if train.output is None:
        train.output = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-objectives"
    if train.model.potentials is None:
        train.model = replace(train.model, potentials=("unary", *train.model.relations))
    return Settings(train, values["modes"], values["seconds"], values["start_epochs"])


class Comparison:
    """The modes of a comparison, trained one after another into its output folder.

    Raises InputError when settings, data or the output folder cannot be used.
    """

    def __init__(self, settings: Settings, stop: StopRequest, command: str) -> None:
        self.settings, self.stop, self.command = settings, stop, command
        data, seed = settings.train.data, settings.train.seed
        self.train_set = self._open(data.train_split, seed)
        self.val_set = self._open(data.val_split, seed)
        self.folder = settings.folder

    def _open(self, split: str, seed: int) -> SegmentationDataset:
        data = self.settings.train.data
        return open_dataset(data.dataset, data.root, split, seed)

    def run(self) -> bool:
        """Whatever is not done yet; False when stopped."""
        if not self.make_start():
            return False
        measured = self.measure()
        if measured is None:
            return False
        for number, name in enumerate(self.settings.modes, 1):
            if not (self.folder / name / "result.json").exists():
                print(f"mode {number} of {len(self.settings.modes)}: {name}")
                if not self.train_mode(name, measured):
                    return False
            self.write_report(measured)
        return True

    def make_start(self) -> bool:
        """Trains what all modes start from; False when stopped."""
        if self.settings.start_epochs == 0:
            return True
        # A warm start without an end; the setting makes sure that the model allows one.
        config = replace(
            self.settings.train,
            epochs=self.settings.start_epochs,
            warm_start=0.5,
            output=self.folder / "start",
        )
        trainer = Trainer(config, self.train_set, self.val_set)
        if not trainer.model.can_warm_start():
            raise InputError("start_epochs: must be 0 for a model without a unary and a relation")
        trainer.stages = (Stage("piecewise", trainer.model.unary_names(), 1.0, 0),)
        print("start: the unaries alone")
        return self._train(trainer)

    def trainer(self, config: TrainConfig) -> Trainer:
        """A trainer whose model is at the start."""
        trainer = Trainer(config, self.train_set, self.val_set)
        if self.settings.start_epochs:
            path = self.folder / "start" / "last.pt"
            load_weights(trainer.model, load_checkpoint(path), path)
            trainer.model.start_relations_from_unary()
        return trainer

    def measure(self) -> dict[str, Any] | None:
        """Seconds a step by objective, and scores of the start; None when stopped.

        Measured once: the file start.json holds them.
        """
        file = self.folder / "start.json"
        if file.exists():
            measured: dict[str, Any] = json.loads(file.read_text())
            return measured
        # Steps too small to change anything: objectives take turns on one model.
        still = replace(self.settings.train.optim, lr=1e-12, lr_initialised=1e-12)
        trainer = self.trainer(replace(self.settings.train, optim=still))
        names = trainer.model.potential_names
        trained = validate(
            trainer.model,
            self.val_set,
            trainer.config.amp,
            names,
            lambda: self.stop.signal is not None,
            trainer.world,
        )
        if trained is None:
            return None
        objectives = sorted(
            {phase.objective for m in self.settings.modes for phase in self.phases(m)}
        )
        trainer.stages = tuple(Stage(name, names, 1.0, 0) for name in objectives)
        trainer.model.train()
        images, labels = next(epoch_batches(self.train_set, trainer.config, 0))
        times: dict[str, list[float]] = {name: [] for name in objectives}
        for _ in range(TIMED_STEPS):
            for stage, name in enumerate(objectives):
                trainer.progress.stage = stage
                begin = time.perf_counter()
                trainer.step(images, labels)
                if trainer.device.type == "cuda":
                    torch.cuda.synchronize(trainer.device)
                times[name].append(time.perf_counter() - begin)
        measured = {
            "command": self.command,
            "seconds_per_step": {name: statistics.median(t[1:]) for name, t in times.items()},
            "per_epoch": trainer.per_epoch,
            "start": {title: dataclasses.asdict(score) for title, score in trained.items()},
        }
        file.write_text(json.dumps(measured, indent=1) + "\n")
        return measured

    def train_mode(self, name: str, measured: dict[str, Any]) -> bool:
        """Trains a mode unless it is done; False when stopped."""
        config = self.mode_config(name, measured)
        trainer = self.trainer(config)
        try:
            finished = self._train(trainer)
            error = None
        except LostProcessError:
            raise
        except TrainingError as failure:
            finished, error = True, str(failure)
            print(f"{name}: {error}", file=sys.stderr)
        if finished:
            objectives = [
                [stage.objective for stage in trainer.stages if stage.first_epoch <= epoch][-1]
                for epoch in range(config.epochs)
            ]
            times = [measured["seconds_per_step"][objective] for objective in objectives]
            result = {"seconds_per_step_by_epoch": times, "error": error}
            (self.folder / name / "result.json").write_text(json.dumps(result) + "\n")
        return finished

    def mode_config(self, name: str, measured: dict[str, Any]) -> TrainConfig:
        """The settings of a mode's training, its epochs fitted to the budget of seconds."""
        settings = self.settings
        epochs = settings.train.epochs
        if settings.seconds is not None:
            parts, seconds = self.phases(name), measured["seconds_per_step"]
            whole = sum(phase.share for phase in parts)
            mean = sum(phase.share / whole * seconds[phase.objective] for phase in parts)
            least = math.ceil(whole / min(phase.share for phase in parts))
            epochs = max(least, round(settings.seconds / (mean * measured["per_epoch"])))
        objective, output = settings.modes[name], self.folder / name
        return replace(settings.train, objective=objective, epochs=epochs, output=output)

    def phases(self, name: str) -> tuple[PhaseConfig, ...]:
        """The phases of a mode."""
        return replace(self.settings.train, objective=self.settings.modes[name]).phases()

    def _train(self, trainer: Trainer) -> bool:
        """Trains, or goes on training, in the trainer's output folder."""
        folder = trainer.config.output
        assert folder is not None
        if (folder / "last.pt").exists():
            trainer.restore(folder / "last.pt")
        folder.mkdir(exist_ok=True)
        write_config(folder, trainer.config)
        return trainer.fit(folder, self.stop)

    def write_report(self, measured: dict[str, Any]) -> None:
        """Writes comparison.json, .md and .png of the modes that are done."""
        curves = {
            name: comparison_report.read_curve(self.folder / name, measured)
            for name in self.settings.modes
            if (self.folder / name / "result.json").exists()
        }
        report = {
            "command": measured["command"],
            "commit": package_commit(),
            "versions": {"deepcrf_ext": __version__, "torch": torch.__version__},
            "device": str(choose_device(self.settings.train.device)),
            "threads": torch.get_num_threads(),
            "seconds_per_step": measured["seconds_per_step"],
            "modes": comparison_report.as_dict(curves),
            "config": self.settings.as_dict(),
        }
        text = comparison_report.table(curves)
        (self.folder / "comparison.json").write_text(json.dumps(report, indent=1) + "\n")
        (self.folder / "comparison.md").write_text(text + "\n")
        comparison_report.plot(curves, self.folder / "comparison.png")


def compare(settings: Settings, command: str) -> int:
    """Trains the modes that are not done yet and reports; returns the exit code.

    That is 130 or 143 after Ctrl-C or SIGTERM. Raises InputError when settings or data cannot be
    used, OSError when a file cannot be written.
    """
    begin = time.monotonic()
    with StopRequest() as stop:
        finished = Comparison(settings, stop, command).run()
    if not finished:
        print(
            "stopped; continue with\n"
            f"  python -m deepcrf_ext.compare_objectives --resume {settings.folder}",
            file=sys.stderr,
        )
        return stop.exit_code
    print((settings.folder / "comparison.md").read_text())
    minutes = (time.monotonic() - begin) / 60
    print(f"done in {minutes:.1f} min: {settings.folder} (comparison.png, .md, .json)")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "deepcrf_ext.compare_objectives", *arguments])

    def body() -> int:
        settings = parse_settings(arguments)
        create_run_folder(settings.train)
        settings.write()
        return compare(settings, command)

    def resumed() -> int:
        options = cli.parse(make_resume_parser(), arguments)
        file = options.resume / "config.yaml"
        if not file.is_file():
            raise InputError(f"resume: {options.resume} is not the folder of a comparison")
        settings = parse_settings(["--config", str(file), "--output", str(options.resume)])
        return compare(settings, command)

    return cli.run_command(resumed if _is_resume(arguments) else body)


def _is_resume(arguments: Sequence[str]) -> bool:
    return any(a == "--resume" or a.startswith("--resume=") for a in arguments)


if __name__ == "__main__":
    sys.exit(main())
