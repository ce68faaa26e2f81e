"""Files that settings of data name: found below the root or where they are, YAML, JSON or text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deepcrf_ext.errors import InputError


def find_file(option: str, name: str | Path, root: Path, purpose: str) -> Path:
    """The file of this name, below `root` or else as it is. Raises InputError naming the option."""
    if str(name).strip().startswith(("[", "{")):
        raise InputError(
            f"{option}: got {name}, which is not YAML; must be {purpose}, colours in quotes as in "
            "'#c8140a'"
        )
    below, as_given = root / name, Path(name).expanduser()
    for path in (below, as_given):
        if path.is_file():
            return path
    raise InputError(f"{option}: neither {below} nor {as_given} is a file; must be {purpose}")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises InputError naming it when it is not one."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error


def read_settings(option: str, name: str | Path, root: Path, purpose: str) -> Any:
    """What a YAML or JSON file holds. Raises InputError naming it when it is neither."""
    path = find_file(option, name, root, f"{purpose}, or a YAML or JSON file of it")
    return parse_yaml(path)


def parse_yaml(path: Path) -> Any:
    """What a YAML file, or a JSON file, holds. Raises InputError naming it when it is neither."""
    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML or JSON ({' '.join(str(error).split())})") from error
