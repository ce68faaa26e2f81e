"""The classes of one's own data: names, with colours or without, from settings or from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.data.label_maps import IGNORE, MAX_CLASSES, Colour, parse_colour
from deepcrf_ext.data.settings_files import find_file, parse_yaml, read_text
from deepcrf_ext.errors import InputError

Classes = Sequence[str] | Mapping[str, object] | str | Path
_FORMS = (
    "a list of names, a map of names to colours, or a file: one name a line, with its colour "
    "or without, YAML or JSON"
)


@dataclass(frozen=True)
class ClassList:
    """names: in the order of their indices. colours: of every class, or None where none are given.

    Raises InputError for too many or few classes and for a name that is empty or there twice.
    """

    names: tuple[str, ...]
    colours: dict[str, Colour] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise InputError(f"data.classes: {len(self.names)} classes; must be 1..{MAX_CLASSES}")
        for name in self.names:
            if not name.strip() or name == IGNORE:
                raise InputError(f"data.classes: {name!r} cannot be the name of a class")
            if self.names.count(name) > 1:
                raise InputError(f"data.classes: {name!r} is there twice")

    @property
    def palette(self) -> np.ndarray:
        """uint8 [K, 3]: the colours, or VOC's where there are none."""
        if self.colours is None:
            return voc_palette(len(self.names))
        return np.array([self.colours[name] for name in self.names], np.uint8)

    def plain(self) -> tuple[str, ...] | dict[str, Any]:
        """As `data.classes` takes it, without a file."""
        if self.colours is None:
            return self.names
        return {name: list(self.colours[name]) for name in self.names}


def read_classes(value: Classes, root: Path) -> ClassList:
    """The classes that `data.classes` gives. Raises InputError where it gives none."""
    if not isinstance(value, str | Path):
        return _from_content(value, "data.classes")
    path = find_file("data.classes", value, root, _FORMS)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return _from_content(parse_yaml(path), str(path))
    return _from_pairs([_from_line(line) for line in _lines(read_text(path))], str(path))


def _from_content(content: object, source: str) -> ClassList:
    """From what YAML gives: names, or names with colours, as a list or as a map."""
    if isinstance(content, Mapping):
        items = list(content.items())
        if items and all(isinstance(key, int) for key in content):  # {0: background, 1: crack}
            if sorted(content) != list(range(len(content))):
                raise InputError(f"{source}: indices {sorted(content)} must be 0, 1, 2 and so on")
            return _from_content([content[index] for index in range(len(content))], source)
        if len(items) == 1 and isinstance(items[0][1], list | Mapping):  # names: [...]
            key, inner = items[0]
            if parse_colour(inner) is None and key in ("classes", "names"):
                return _from_content(inner, source)
        return _from_pairs([(key, colour) for key, colour in items], source)
    if isinstance(content, list | tuple):
        return _from_pairs([_from_item(item) for item in content], source)
    raise InputError(f"{source}: got {content!r}, must be {_FORMS}")


def _from_item(item: object) -> tuple[object, object]:
    if isinstance(item, Mapping) and "name" in item:
        return item["name"], item.get("color", item.get("colour"))
    if isinstance(item, Mapping) and len(item) == 1:
        return next(iter(item.items()))
    return item, None


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    header = lines[:1] and re.fullmatch(r"name\s*[,;\t ]\s*r\w*\W+g\w*\W+b\w*", lines[0].lower())
    return lines[1:] if header else lines


def _from_line(line: str) -> tuple[object, object]:
    """`crack`, `crack 200 20 10`, `crack #c8140a`, `200 20 10 crack`, and the same with commas."""
    colour = r"(?P<colour>#[0-9a-fA-F]{6}|\d{1,3}(?:[\s,;]+\d{1,3}){2})"
    for pattern in (rf"(?P<name>.*?)[\s,;]+{colour}", rf"{colour}[\s,;]+(?P<name>.*)"):
        if match := re.fullmatch(pattern, line):
            return match["name"], match["colour"]
    return line, None


def _from_pairs(pairs: Sequence[tuple[object, object]], source: str) -> ClassList:
    names = []
    for name, _ in pairs:
        if not isinstance(name, str):
            raise InputError(f"{source}: class {name!r} must be a name; put it into quotes")
        names.append(name)
    given = [colour for _, colour in pairs if colour is not None]
    if not given:
        return ClassList(tuple(names))
    colours: dict[str, Colour] = {}
    for name, (_, value) in zip(names, pairs, strict=True):
        colour = parse_colour(value)
        if colour is None:
            raise InputError(
                f"{source}: the colour of {name!r} is {value!r}; must be like '#c8140a' or "
                "[200, 20, 10], for every class or for none"
            )
        colours[name] = colour
    if len(set(colours.values())) < len(colours):
        twice = [n for n, c in colours.items() if list(colours.values()).count(c) > 1]
        raise InputError(f"{source}: {', '.join(twice)} have the same colour")
    return ClassList(tuple(names), colours)
