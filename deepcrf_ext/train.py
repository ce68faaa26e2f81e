"""`python -m deepcrf_ext.train`: trains a deep CRF and writes a run folder."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from jsonargparse import ArgumentParser

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import require_trained_root
from deepcrf_ext.cli.running import describe, run_command
from deepcrf_ext.config import OPTIMISERS, PRESETS, PresetName, TrainConfig
from deepcrf_ext.data import SegmentationDataset, open_dataset, refuse_bad_files
from deepcrf_ext.data.base import FileDataset, FileReport, labels_in, turned_notice
from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.parallel.world import LostProcessError, World, join
from deepcrf_ext.records.checkpoint import find_checkpoint, load_checkpoint, read_config
from deepcrf_ext.records.run_folder import create_run_folder, refuse_used
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.picture_grid import write_picture_grid
from deepcrf_ext.training.trainer import Trainer

DESCRIPTION = """Trains a deep structured CRF, piecewise as in the paper or by another --objective.

Without options it trains the preset `small` on built-in rendered scenes in a few minutes. The run
folder holds the settings, metrics.jsonl and TensorBoard events, checkpoints and a picture grid.
Ctrl-C and SIGTERM end it after the current step; --resume goes on exactly there. Several GPUs, or
machines: torchrun --nproc-per-node N -m deepcrf_ext.train, each process on its part of a batch."""


def make_parser(preset: PresetName = "small") -> ArgumentParser:
    """The options of a new run: every field of `TrainConfig`, as a preset has it, and --config."""
    parser = parsing.make_parser("python -m deepcrf_ext.train", DESCRIPTION)
    parser.add_class_arguments(TrainConfig)
    parser.set_defaults(PRESETS[preset])
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="Run folder (its last.pt) or checkpoint to continue, with the settings saved there; "
        "beside it only --epochs, --device, --data.root and --data.workers can be given.",
    )
    return parser


def make_resume_parser() -> ArgumentParser:
    """The options that can be given beside --resume."""
    parser = ArgumentParser(
        prog="python -m deepcrf_ext.train", exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--resume", type=Path, required=True)
    parser.add_argument("--epochs", type=int | None)
    parser.add_argument("--device", type=str | None)
    parser.add_argument("--data.root", type=Path | None)
    parser.add_argument("--data.workers", type=int | None)
    return parser


def parse_new_run(argv: Sequence[str]) -> TrainConfig:
    """Settings of a new run: the preset's, the optimiser's, the config file's, the options'.

    A later one overrides those before.

    Raises InputError for options that do not fit.
    """
    first = parsing.parse_first(make_parser(), argv)
    parser = make_parser(first.model.preset)
    parser.set_defaults(OPTIMISERS[first.optim.optimiser])
    values = vars(parsing.parse(parser, argv))
    return TrainConfig(**{field.name: values[field.name] for field in fields(TrainConfig)})


def parse_resume(argv: Sequence[str]) -> tuple[TrainConfig, Path]:
    """Settings and checkpoint of a run to continue. Raises InputError for what does not fit."""
    try:
        options = parsing.parse(make_resume_parser(), argv)
    except InputError as error:
        raise InputError(
            f"{error}; a resumed run keeps its settings: beside --resume only --epochs, --device, "
            "--data.root and --data.workers can be given; a new run with other settings starts "
            "from its weights by --init-from"
        ) from error
    path = find_checkpoint(options.resume)
    config = replace(read_config(load_checkpoint(path), path), output=path.parent)
    given = {name: options[name] for name in ("epochs", "device") if options[name] is not None}
    data = {name: value for name, value in vars(options.data).items() if value is not None}
    if "root" not in data:
        require_trained_root(config.data)
    return replace(config, data=replace(config.data, **data), **given), path


def train(config: TrainConfig, checkpoint: Path | None = None) -> int:
    """Runs or continues a training; returns the exit code, 130 or 143 after Ctrl-C or SIGTERM.

    In processes that `torchrun` started, they train together.

    Raises:
        InputError: settings, data or checkpoint cannot be used.
        TrainingError: a loss is not finite, or another process has ended.
        OSError: the run folder cannot be written.
    """
    with join(config.device) as world:
        return _train(config, checkpoint, world)


def _train(config: TrainConfig, checkpoint: Path | None, world: World) -> int:
    begin = time.monotonic()
    train_set, val_set = (
        open_dataset(config.data, split=split, seed=config.seed, strict=False)
        for split in (config.data.train_split, config.data.val_split)
    )
    _refuse_bad_files(config, (train_set, val_set), world, new=checkpoint is None)
    _refuse_same_images(config, train_set, val_set)
    trainer = Trainer(config, train_set, val_set, checkpoint=checkpoint, world=world)
    config = trainer.config
    for source, result in (
        (config.vgg_weights or config.backbone_weights, trainer.loaded),
        (config.init_from, trainer.transfer),
    ):
        if world.is_main and result is not None:
            print(f"{source}: {result}")
    if checkpoint is None:
        folder = world.from_main(create_run_folder(config) if world.is_main else Path())
    else:
        folder = checkpoint.parent
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    if world.is_main:
        processes = "" if world.size == 1 else f" in {world.size} processes"
        print(
            f"{config.data.dataset}: {len(train_set)} training and {len(val_set)} validation "
            f"images, {train_set.num_classes} classes; {config.model.preset} model, {count:,} "
            f"parameters on {trainer.device}{processes}; writing {folder}",
            flush=True,
        )
    try:
        with StopRequest() as stop:
            finished = trainer.fit(folder, stop)
    except LostProcessError as error:
        raise TrainingError(f"{error}; all can go on with --resume {folder}") from error
    except OSError as error:  # such as a full disk
        if not (folder / "last.pt").exists():
            if world.is_main and checkpoint is None:
                shutil.rmtree(folder, ignore_errors=True)  # the mended command may take its name
            raise
        text = f"{describe(error)}; mended, it can go on with --resume {folder}"
        raise InputError(text) from error
    except InputError as error:
        if trainer.progress.step > 0:
            raise InputError(f"{error}; mended, it can go on with --resume {folder}") from error
        if world.is_main and checkpoint is None:
            # Nothing is trained, and the mended command may take its name.
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if not finished:
        if world.is_main:
            print(
                f"stopped after step {trainer.progress.step}; continue with\n"
                f"  python -m deepcrf_ext.train --resume {shlex.quote(str(folder))}",
                file=sys.stderr,
            )
        return stop.exit_code or 128 + signal.SIGTERM  # another process was asked to stop
    if not world.is_main:
        return 0
    files = "weights, metrics.jsonl, grid.png"
    try:
        with trainer.average.applied():
            write_picture_grid(
                trainer.model, val_set, config.amp, folder / "grid.png", views=trainer.views
            )
    except (InputError, OSError) as error:  # what is trained is there without it
        files = files.removesuffix(", grid.png")
        reason = describe(error) if isinstance(error, OSError) else error
        print(f"grid.png is left out: {reason}", file=sys.stderr)
    quoted = shlex.quote(str(folder))
    best = "best.pt" if (folder / "best.pt").exists() else "last.pt"  # merged, and finished
    print(
        f"done in {(time.monotonic() - begin) / 60:.1f} min: {folder} "
        f"({best}, {files}); next\n"
        f"  python -m deepcrf_ext.evaluate --checkpoint {quoted} --rows all\n"
        f"  python -m deepcrf_ext.predict IMAGE --checkpoint {quoted} --output predictions"
    )
    return 0


def _refuse_same_images(
    config: TrainConfig, train_set: SegmentationDataset, val_set: SegmentationDataset
) -> None:
    """Raises InputError where two splits of other names are the same files."""
    splits = config.data.train_split, config.data.val_split
    if not (isinstance(train_set, FileDataset) and isinstance(val_set, FileDataset)):
        return
    if splits[0] != splits[1] and set(train_set.files) == set(val_set.files):
        raise InputError(
            f"data.val_split: {splits[1]} has the same images as {splits[0]}; data.images, "
            "or data.split_file and its lists, must tell them apart, or else --data.val-split "
            f"{splits[0]} measures training on its own images"
        )


def _refuse_bad_files(
    config: TrainConfig, datasets: Sequence[SegmentationDataset], world: World, new: bool
) -> None:
    """Raises InputError where a file cannot be used, hours before training would come to it, and
    before that, for a new run, where its folder is in use."""
    problem: str | None = None
    if world.is_main:
        try:
            if new and config.output is not None:
                refuse_used(config.output)
            _report_labels(config, datasets, refuse_bad_files(*datasets))
        except InputError as error:
            problem = str(error)
    problem = world.from_main(problem)
    if problem is not None:
        raise InputError(problem)


_NAMED = 12  # classes that a line names, at most


def _report_labels(
    config: TrainConfig,
    datasets: Sequence[SegmentationDataset],
    reports: Sequence[Sequence[FileReport]],
) -> None:
    """Says which classes training will not see, and which images EXIF turns. Raises InputError
    where a split has no label."""
    for name, dataset, found in zip(("train", "val"), datasets, reports, strict=True):
        if not found:
            continue
        split = getattr(config.data, f"{name}_split")
        seen = labels_in(found)
        absent = [label for index, label in enumerate(dataset.classes) if index not in seen]
        if len(absent) == dataset.num_classes:
            raise InputError(f"data.{name}_split: no pixel of {split} has a label, all are ignored")
        if absent and name == "train":
            more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
            named = ", ".join(absent[:_NAMED])
            print(f"{split} has no pixel of {named}{more}", file=sys.stderr)
        turned = [report.file.image for report in found if report.turned]
        if turned:
            print(f"{split}: {turned_notice(turned)}", file=sys.stderr)


def _run(argv: Sequence[str]) -> int:
    if parsing.is_resume(argv):
        return train(*parse_resume(argv))
    return train(parse_new_run(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
