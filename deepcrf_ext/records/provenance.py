"""What the commands that measure a checkpoint on a data set share: options, data and records."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace

import deepcrf_ext
from deepcrf_ext.cli import parsing as cli
from deepcrf_ext.config import TrainConfig, to_dict
from deepcrf_ext.data import DATASETS, SegmentationDataset, open_dataset
from deepcrf_ext.errors import InputError


def add_measuring_options(parser: ArgumentParser, verb: str, folder: str) -> None:
    """Adds --checkpoint, --data.*, --output and --device.

    verb: what is done with the split. folder: what --output is by default, for its help.
    """
    cli.add_checkpoint_option(parser)
    splits = "; ".join(f"{name}: {', '.join(names)}" for name, names in DATASETS.items())
    parser.add_argument("--data.split", default="val", help=f"Split to {verb} ({splits}).")
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
        "--output",
        type=Path | None,
        help="Folder for the results, replaced if there are any. "
        f"Default: {folder} beside the checkpoint.",
    )
    cli.add_device_option(parser)


def open_split(
    arguments: Namespace, config: TrainConfig, metadata: Mapping[str, Any]
) -> SegmentationDataset:
    """The split that the options name; what they leave out is filled in from the training.

    Raises InputError when its classes are not those of the checkpoint.
    """
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


def output_folder(arguments: Namespace, command: str) -> Path:
    """The folder for the results, made if need be; after `open_split`."""
    folder: Path | None = arguments.output
    if folder is None:
        run = arguments.checkpoint
        beside = run if run.is_dir() else run.parent
        folder = beside / f"{command}-{arguments.data.dataset}-{arguments.data.split}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def provenance(
    command: str,
    argv: Sequence[str],
    arguments: Namespace,
    config: TrainConfig,
    metadata: Mapping[str, Any],
    device: torch.device,
    images: int,
) -> dict[str, Any]:
    """What a record of results says about where they come from, as plain JSON types."""
    return {
        "command": shlex.join(["python", "-m", f"deepcrf_ext.{command}", *argv]),
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
            "images": images,
        },
        "config": to_dict(config),
    }


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
