"""Work in steps, each done once: its result is a file that is written whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deepcrf_ext.errors import InputError
from deepcrf_ext.records.environment import environment
from deepcrf_ext.records.provenance import package_commit
from deepcrf_ext.whole_files import write_json


class Steps:
    """The finished steps in a folder, one NAME.json each.

    A file holds the "result" of the step and how it came about: "command", "commit", "date",
    "seconds" (of the run that finished it) and "environment" (versions and machine).

    Args:
        folder: made before the first step if it does not exist.
        command: the command line that is being run.

    Raises InputError in a process of `torchrun`: the work would be done as often as there are.
    """

    def __init__(self, folder: Path, command: str) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("WORLD_SIZE: this command runs in one process, without torchrun")
        self.folder, self.command = folder, command

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a step, from its file; without one the work is done first.

        Raises InputError for a file that cannot be read.
        """
        path = self.folder / f"{name}.json"
        if path.exists():
            return read_json(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        result = work()
        record = {
            "step": name,
            "command": self.command,
            "commit": package_commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - begin, 2),
            "environment": environment()[0],
            "result": result,
        }
        write_json(path, record)
        return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object. Raises InputError naming the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it to have it made anew") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; delete it to have it made anew")
    return value
