"""Files that settings name or are: found below a root or where they are, YAML, JSON or text."""

from __future__ import annotations

import codecs
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcrf_ext.errors import InputError, reason
from deepcrf_ext.libraries import yaml


def find_file(option: str, name: str | Path, root: Path, purpose: str) -> Path:
    """The file of this name, below `root` or else as it is. Raises InputError naming the option."""
    if str(name).strip().startswith(("[", "{")):
        raise InputError(
            f"{option}: got {name}, which is not YAML; must be {purpose}, colours in quotes as in "
            "'#c8140a'"
        )
    below, as_given = root / name, home_expanded(name)
    for path in (below, as_given):
        if os.path.isfile(path):  # False for what is too long for a name
            return path
    raise InputError(f"{option}: neither {below} nor {as_given} is a file; must be {purpose}")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark in front, as Windows writes it.

    Raises InputError naming it when it is neither.
    """
    try:
        content = path.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if marked else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({reason(error)})") from error


def read_settings(option: str, name: str | Path, root: Path, purpose: str) -> Any:
    """What a YAML or JSON file holds. Raises InputError naming it when it is neither."""
    path = find_file(option, name, root, f"{purpose}, or a YAML or JSON file of it")
    return parse_yaml(path)


def parse_yaml(path: Path) -> Any:
    """What a YAML file, or a JSON file, holds. Raises InputError naming it when it is neither, or
    when a key is there twice, of which only the last would count."""
    text = read_text(path)
    try:
        try:
            # YAML refuses its tabs, and takes 1e-05, as JSON is written, for text.
            return json.loads(text, object_pairs_hook=_mapping)
        except json.JSONDecodeError:
            refuse_repeated_keys(text)
            return yaml.safe_load(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML or JSON ({' '.join(str(error).split())})") from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([key for key, _ in pairs])
    return dict(pairs)


def refuse_repeated_keys(text: str) -> None:
    """Raises InputError where a mapping of YAML has a key twice, YAMLError where it is no YAML."""
    nodes = [yaml.compose(text, yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            _refuse_twice([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def _refuse_twice(keys: Sequence[str]) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise InputError(f"the key {twice[0]!r} is there twice")


def home_expanded(path: str | Path) -> Path:
    """The path with the home folder for a ~ in front; as it is where no such user is known."""
    return Path(os.path.expanduser(path))
