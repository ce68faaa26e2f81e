"""Settings as plain values and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from deepcrf_ext.config.train import TrainConfig
from deepcrf_ext.errors import InputError


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings as nested dictionaries of plain values, as YAML and checkpoints hold them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The settings back from `to_dict`. Raises InputError naming a value that does not fit."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, "run")
    try:
        parsed = parser.instantiate(parser.parse_object({"run": values}))
    except Exception as error:
        raise InputError(f"settings: {' '.join(str(error).split())}") from error
    config: TrainConfig = parsed["run"]
    return config
