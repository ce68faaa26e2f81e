"""Settings as plain values and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from deepcrf_ext.config.model import ModelConfig
from deepcrf_ext.config.train import TrainConfig
from deepcrf_ext.errors import InputError

Config = TypeVar("Config")


def to_dict(config: TrainConfig | ModelConfig) -> dict[str, Any]:
    """The settings as nested dictionaries of plain values, as YAML and checkpoints hold them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


@overload
def from_dict(values: Mapping[str, Any]) -> TrainConfig: ...
@overload
def from_dict(values: Mapping[str, Any], kind: type[Config]) -> Config: ...
def from_dict(values: Mapping[str, Any], kind: Any = TrainConfig) -> Any:
    """The settings back from `to_dict`; what is left out has the default.

    Raises InputError naming a value that does not fit.
    """
    try:
        return _of_type(kind, values, "")
    except InputError as error:
        raise InputError(f"settings: {error}") from error


def _of_type(kind: Any, value: Any, name: str) -> Any:
    """A plain value as what a type hint says. Raises InputError, calling the value `name`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        prefix = f"{name}." if name else ""
        for key in value:
            if key not in hints:
                raise InputError(f"{prefix}{key}: unknown, must be one of {', '.join(hints)}")
        fitting = {key: _of_type(hints[key], item, f"{prefix}{key}") for key, item in value.items()}
        try:
            return kind(**fitting)  # type: ignore[operator]
        except TypeError as error:  # one without a default is left out
            raise InputError(f"{name}: {error}") from error
    if origin in (Union, UnionType):
        for option in arguments:
            try:
                return _of_type(option, value, name)
            except InputError:
                continue
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(_of_type(k, item, f"{name}[{i}]") for i, (k, item) in enumerate(pairs))
    if origin is dict and isinstance(value, Mapping):
        return {key: _of_type(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin is Literal and value in arguments:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is Any or type(value) is kind:
        return value
    raise InputError(f"{name or 'settings'}: got {value!r}, must be {_in_words(kind)}")


def _in_words(kind: Any) -> str:
    """A type hint for people who set it in a file."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, arguments))
    if origin is tuple:
        return f"a list of {', '.join(_in_words(k) for k in arguments if k is not ...)}"
    if origin is dict or dataclasses.is_dataclass(kind):
        return "a mapping"
    return "null" if kind is NoneType else str(getattr(kind, "__name__", kind))
