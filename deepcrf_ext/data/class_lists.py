"""The classes of one's own data: names, with colours or without, from settings or from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.data.label_maps import IGNORE, MAX_CLASSES, Colour, parse_colour
from deepcrf_ext.errors import InputError
from deepcrf_ext.settings_files import find_file, parse_yaml, read_text

Classes = Sequence[str] | Mapping[str, object] | str | Path
Value = TypeVar("Value")
_WRAPPERS = ("classes", "names", "categories", "labels", "id2label", "label2id")
"""Keys of YAML and JSON files below which the list may be."""
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
            if not isinstance(name, str) or not name.strip() or name == IGNORE or "\t" in name:
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
    return _from_lines(read_text(path), str(path))


def _from_content(content: object, source: str) -> ClassList:
    """From what YAML gives: names, or names with colours, as a list or as a map."""
    if isinstance(content, Mapping):
        for key in _WRAPPERS:  # names: [...]
            inner = content.get(key)
            if isinstance(inner, list | Mapping) and parse_colour(inner) is None:
                return _from_content(inner, source)
        keys, values = list(content), list(content.values())
        if not any(map(parse_colour, values)) and (indices := _indices(keys)):
            return _from_content(_in_order(indices, values, source), source)  # {0: a, 1: b}
        if indices := _indices(values):
            return _from_content(_in_order(indices, keys, source), source)  # {a: 0, b: 1}
        return _from_pairs(list(content.items()), source)
    if isinstance(content, list | tuple):
        items = list(content)
        if indices := _indices([_id(item) for item in items]):
            items = _in_order(indices, items, source)
        return _from_pairs([_from_item(item) for item in items], source)
    raise InputError(f"{source}: got {content!r}, must be {_FORMS}")


def _indices(values: Sequence[object]) -> list[int] | None:
    """Numbers, or their digits, as JSON has them in keys; None where a value is neither."""
    if not all(type(v) is int or re.fullmatch(r"\d{1,5}", str(v)) for v in values):
        return None
    return [int(str(value)) for value in values]


def _in_order(indices: Sequence[int], values: Sequence[Value], source: str) -> list[Value]:
    """The values in the order of their indices. Raises InputError unless these are 0, 1, 2 ..."""
    by_index = dict(zip(indices, values, strict=True))
    if set(by_index) != set(range(len(values))):
        raise InputError(
            f"{source}: indices {sorted(indices)} must be 0, 1, 2 and so on; data.labels says what "
            "other values are, and where masks hold colours alone, indices are to be left out"
        )
    return [by_index[index] for index in range(len(values))]


def _id(item: object) -> object:
    """The index that a file gives an item of its list, if any."""
    return item.get("id", item.get("index")) if isinstance(item, Mapping) else None


def _from_item(item: object) -> tuple[object, object]:
    if isinstance(item, Mapping) and "name" in item:
        return item["name"], item.get("color", item.get("colour"))
    if isinstance(item, Mapping) and len(item) == 1:
        return next(iter(item.items()))
    return item, None


_COMMENT = re.compile(r"(^#(?![0-9a-fA-F]{6}\b)|\s#\s).*")
_HEADER = re.compile(
    r"((id|index|pixel|value|label|class|name|colou?r|rgb|parts|actions|hex|r|g|b|red|green|blue)s?"
    r"([\s,;:_]+|$)){2,}"
)
_COLOUR = r"(?P<colour>#[0-9a-fA-F]{6}|\d{1,3}(?:[\s,;]+\d{1,3}){2})"
_COLOURED = (
    re.compile(rf"(?P<name>.*?)[\s,;:]+{_COLOUR}(?::.*)?"),
    re.compile(rf"{_COLOUR}[\s,;]+(?P<name>.*)"),
)
_CELL = re.compile(r"\s*[,;\t]\s*")
_NUMBERED = re.compile(r"(\d{1,5})[\s,;:]+(.+)")


def _from_lines(text: str, source: str) -> ClassList:
    """From lines `crack`, `crack 200 20 10`, `crack #c8140a`, `200 20 10 crack`, the same with
    commas, or all with their indices in front; CVAT's `crack:200,20,10::` too.

    Comments, a line that names the columns and labelme's `__ignore__`, which is no class, are left
    out.
    """
    stripped = (_COMMENT.sub("", line.strip()).strip() for line in text.splitlines())
    lines = [line for line in stripped if line and line != "__ignore__"]
    if lines and _HEADER.fullmatch(lines[0].lower()):
        del lines[0]
    elif lines and "name" in (columns := _CELL.split(lines[0].lower())) and len(columns) > 2:
        raise InputError(f"{source}: a table of {', '.join(columns)}; must be {_FORMS}")
    parts = [None if _COLOURED[1].fullmatch(line) else _NUMBERED.fullmatch(line) for line in lines]
    numbered = [match.groups() for match in parts if match]
    indices = [int(number) for number, _ in numbered]
    if len(lines) > 2 and indices == list(range(len(lines) - 1)):
        other = lines[parts.index(None)]
        raise InputError(f"{source}: {other!r} has no index, all other lines have one")
    if len(numbered) == len(lines):
        lines = _in_order(indices, [rest for _, rest in numbered], source)
    return _from_pairs([_from_line(line) for line in lines], source)


def _from_line(line: str) -> tuple[object, object]:
    for pattern in _COLOURED:
        if match := pattern.fullmatch(line):
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
