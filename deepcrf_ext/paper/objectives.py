"""Training objectives compared: one start, one budget."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from deepcrf_ext.config import ObjectiveName, PhaseConfig, TrainConfig, to_dict
from deepcrf_ext.data import open_dataset, refuse_bad_files
from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.evaluation.evaluation import EvaluationStopped
from deepcrf_ext.paper.objectives_report import Curve, plot, read_curve, table
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.parallel.world import LostProcessError
from deepcrf_ext.records.checkpoint import load_checkpoint, load_weights
from deepcrf_ext.records.steps import Steps
from deepcrf_ext.training.interrupt import Stopped, StopRequest
from deepcrf_ext.training.loader import epoch_batches
from deepcrf_ext.training.stages import Stage, first_epochs
from deepcrf_ext.training.trainer import Trainer
from deepcrf_ext.whole_files import write_json, write_text

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
            if not re.fullmatch(r"\w[\w.+-]*", name) or name in ("start", "steps"):
                raise InputError(
                    f"modes: the name {name!r} must be letters, digits and any of _ + - . inside, "
                    "other than 'start' and 'steps'"
                )
        if not self.modes:
            raise InputError("modes: must hold at least one")
        for mode in self.modes.values():
            parts = replace(self.train, objective=mode).phases()
            if self.seconds is None:
                first_epochs(parts, self.train.epochs)
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"seconds: got {self.seconds}, must be positive")
        if self.start_epochs < 0:
            raise InputError(f"start_epochs: got {self.start_epochs}, must not be negative")

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
        write_text(self.folder / "config.yaml", text)


class Comparison:
    """The modes of a comparison, trained one after another into its output folder.

    Raises InputError when settings, data or the output folder cannot be used.
    """

    def __init__(self, settings: Settings, stop: StopRequest, command: str) -> None:
        self.settings, self.stop = settings, stop
        data, seed = settings.train.data, settings.train.seed
        self.train_set, self.val_set = (
            open_dataset(data, split=split, seed=seed, strict=False)
            for split in (data.train_split, data.val_split)
        )
        refuse_bad_files(self.train_set, self.val_set)
        self.folder = settings.folder
        self.steps = Steps(self.folder / "steps", command)

    def run(self) -> None:
        """Whatever is not done yet. Raises Stopped when asked to stop."""
        start = self.steps.run("start", self.make_start)
        trained: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.settings.modes, 1):
            print(f"mode {number} of {len(self.settings.modes)}: {name}")
            work = partial(self.train_mode, name, start["result"])
            trained[name] = self.steps.run(f"mode-{name}", work)
            self.write_report(start, trained)

    def has_trained(self) -> bool:
        """Whether a step of training is done, now or before."""
        return any(log.stat().st_size for log in self.folder.glob("*/metrics.jsonl"))

    def make_start(self) -> dict[str, Any]:
        """Trains what all modes start from and measures it: see `measure`."""
        if self.settings.start_epochs:
            self.train_start()
        return self.measure()

    def train_start(self) -> None:
        """Trains the unaries alone."""
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
        self._train(trainer)

    def trainer(self, config: TrainConfig) -> Trainer:
        """A trainer whose model is at the start."""
        trainer = Trainer(config, self.train_set, self.val_set)
        if self.settings.start_epochs:
            path = self.folder / "start" / "last.pt"
            load_weights(trainer.model, load_checkpoint(path), path)
            trainer.model.start_relations_from_unary()
            trainer.average.restart()
        return trainer

    def measure(self) -> dict[str, Any]:
        """Seconds a step by objective, steps an epoch, and scores of the start."""
        # Steps too small to change anything: objectives take turns on one model.
        still = replace(self.settings.train.optim, lr=1e-12, lr_initialised=1e-12)
        trainer = self.trainer(replace(self.settings.train, optim=still))
        names = trainer.model.potential_names
        try:
            start = trainer.validate(names, self.stop)
        except EvaluationStopped as stopped:
            raise Stopped(self.stop.exit_code) from stopped
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
        return {
            "seconds_per_step": {name: statistics.median(t[1:]) for name, t in times.items()},
            "per_epoch": trainer.per_epoch,
            "start": start,
        }

    def train_mode(self, name: str, measured: dict[str, Any]) -> dict[str, Any]:
        """Trains a mode; returns its curve, with the seconds of steps as measured at the start."""
        config = self.mode_config(name, measured)
        trainer = self.trainer(config)
        error = None
        try:
            self._train(trainer)
        except LostProcessError:
            raise
        except TrainingError as failure:
            error = str(failure)
            print(f"{name}: {error}", file=sys.stderr)
        objectives = [
            [stage.objective for stage in trainer.stages if stage.first_epoch <= epoch][-1]
            for epoch in range(config.epochs)
        ]
        times = [measured["seconds_per_step"][objective] for objective in objectives]
        return dataclasses.asdict(read_curve(self.folder / name, measured, times, error))

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

    def _train(self, trainer: Trainer) -> None:
        """Trains, or goes on training, in the trainer's output folder. Raises Stopped."""
        folder = trainer.config.output
        assert folder is not None
        if (folder / "last.pt").exists():
            trainer.restore(folder / "last.pt")
        if not trainer.fit(folder, self.stop):
            raise Stopped(self.stop.exit_code)

    def write_report(self, start: dict[str, Any], modes: dict[str, dict[str, Any]]) -> None:
        """Writes comparison.json, .md and .png of the modes that are done, given their records."""
        curves = {name: Curve.from_dict(record["result"]) for name, record in modes.items()}
        report = {
            "device": str(choose_device(self.settings.train.device)),
            "start": _without_paths(start),
            "modes": {name: _without_paths(record) for name, record in modes.items()},
            "config": self.settings.as_dict(),
        }
        write_json(self.folder / "comparison.json", report)
        write_text(self.folder / "comparison.md", table(curves) + "\n")
        plot(curves, self.folder / "comparison.png")


def _without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """A record of `Steps` whose environment is what times depend on."""
    names = ("torch", "CPU", "GPUs", "threads")
    return {**record, "environment": {name: record["environment"][name] for name in names}}
