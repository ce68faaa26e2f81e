"""A run folder: settings, metrics, checkpoints and pictures of one training run.

config.yaml      the settings, resolved
run.json         of every time the run was started or resumed: command, commit, versions, machine
metrics.jsonl    one line a step (losses, learning rate) and one a validation (scores); both call
                 the unary and all relations what `DeepCRF.name_of` does, as 1unary+2pair
events.out.*     the same for TensorBoard
last.pt, best.pt checkpoints: the newest, and that of the best validation mean IoU
weights/         the weights of best.pt alone, of last.pt where there is none, for
                 `DeepCRF.from_pretrained` (safetensors)
grid.png         image / truth / the unary alone / the unary and all relations
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from deepcrf_ext.config import TrainConfig, to_dict
from deepcrf_ext.errors import InputError
from deepcrf_ext.records.environment import environment
from deepcrf_ext.records.folder_lock import locked
from deepcrf_ext.records.provenance import package_commit, process_command
from deepcrf_ext.records.steps import read_json
from deepcrf_ext.whole_files import make_folder, write_json, write_text


def refuse_used(folder: Path) -> None:
    """Raises InputError where a run's folder holds anything already, or is none."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        further = f" or use --resume {folder}" if (folder / "last.pt").exists() else ""
        raise InputError(f"output: {folder} exists already; choose another folder{further}")


def create_run_folder(config: TrainConfig) -> Path:
    """Makes the run's folder with config.yaml. Raises InputError as `refuse_used`, also where two
    processes make it at once."""
    folder = config.output
    if folder is None:
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.data.dataset}-{config.model.preset}"
        folder = Path("runs") / name
    refuse_used(folder)
    make_folder(folder)
    with locked(folder):
        refuse_used(folder)
        write_config(folder, config)
    return folder


def write_config(folder: Path, config: TrainConfig) -> None:
    """Writes config.yaml, which `--config` reads back."""
    write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))


def record_start(folder: Path, step: int, **facts: Any) -> None:
    """Adds a start of this process to run.json: command, commit, date, versions and machine.

    step: after how many steps. facts: more to say, plain values by name.
    """
    path = folder / "run.json"
    earlier = read_json(path)["starts"] if path.exists() else []
    start = {
        "command": process_command(),
        "commit": package_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        **facts,
        "environment": environment()[0],
    }
    write_json(path, {"starts": [*earlier, start]})


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


_METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, up to one that was cut short as the run was killed, or
    that is noise as the machine went down."""
    lines: list[dict[str, Any]] = []
    for line in (folder / _METRICS).read_bytes().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # no JSON, or no text
            break
    return lines


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


class MetricsLog:
    """Writes metrics.jsonl and TensorBoard events, continuing after `step` where they exist."""

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / _METRICS
        if path.exists():
            kept = (line for line in read_metrics(folder) if line["step"] <= step)
            write_text(path, "".join(map(_line, kept)))
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line; numbers, at the top or one level down, also go to TensorBoard.

        Numbers that JSON lacks, such as NaN where no pixel has a label, are null in it.
        """
        line = _finite({"kind": kind, "step": step, **values})
        self._file.write(_line(line))
        for key, value in values.items():
            numbers = value if isinstance(value, Mapping) else {"": value}
            for name, number in numbers.items():
                if isinstance(number, int | float):
                    tag = f"{kind}/{key}" + (f"/{name}" if name else "")
                    self._board.add_scalar(tag, number, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._board.close()
