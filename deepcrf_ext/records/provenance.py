"""What a record of results says about where they come from."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepcrf_ext
from deepcrf_ext.config import TrainConfig, to_dict


def provenance(
    command: str,
    argv: Sequence[str],
    arguments: Namespace,
    config: TrainConfig,
    metadata: Mapping[str, Any],
    device: torch.device,
    images: int,
) -> dict[str, Any]:
    """What a record of results says about where they come from, as plain JSON types.

    arguments: of a command that measures a checkpoint on a split (`cli.options.open_split`).
    """
    return {
        **made_by(command, argv, device),
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


def made_by(command: str, argv: Sequence[str], device: torch.device) -> dict[str, Any]:
    """What every record says: command line, commit, versions, device and threads."""
    return {
        "command": command_line(command, argv),
        "commit": package_commit(),
        "versions": {
            "deepcrf_ext": deepcrf_ext.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def command_line(command: str, argv: Sequence[str]) -> str:
    """A command of this package with its options, as a shell takes it."""
    return shlex.join(["python", "-m", f"deepcrf_ext.{command}", *argv])


def process_command() -> str:
    """The command line of this process, the interpreter as `python`."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def package_commit() -> str | None:
    """The commit of the checkout that the package runs from, None for an installed package.

    "-dirty" is behind it when files differ from the commit.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return os.fsdecode(done.stdout).strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
