"""From what a mask holds, values or colours, to class indices.

A pixel of a mask is one number here, its *code*: of a colour, red · 65536 + green · 256 + blue; of
a value up to 255, the code of that grey; of a 16-bit value above, 2^24 + the value. So 255 in a
grey mask and white in a colour mask are the same, however the file was written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data import camvid, voc
from deepcrf_ext.data.images import is_lossy, voc_palette
from deepcrf_ext.errors import InputError
from deepcrf_ext.settings_files import read_settings

Colour = tuple[int, int, int]
Labels = dict[int | str, int | str]

IGNORE = "ignore"
MAX_CLASSES = IGNORE_INDEX
_GREY = 0x010101
_DEEP = 1 << 24
_FEW = 12  # codes that an error lists
_NOISE = 16  # values that a lossy format may confuse are closer than this
LOSSY = (
    "JPEG and the like change values: masks need a lossless format, or data.labels of ranges such "
    "as {0..127: background, 128..255: crack}"
)


def value_code(value: int) -> int:
    """The code of a value, 0..65535."""
    return value * _GREY if value <= 255 else _DEEP + value


def code_values(codes: np.ndarray) -> np.ndarray:
    """The values that codes of greys stand for, int32 of the same shape."""
    return np.where(codes >= _DEEP, codes - _DEEP, codes // _GREY)


def colour_code(colour: Sequence[int]) -> int:
    """The code of a colour, three of 0..255."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def is_grey(code: int) -> bool:
    """Whether a code is that of a value, or of a grey."""
    return code >= _DEEP or code % _GREY == 0


def describe_code(code: int) -> str:
    """A code as `--data.labels` takes it: `7`, or `'#c8140a'` where it is no grey."""
    if code >= _DEEP:
        return str(code - _DEEP)
    return str(code // _GREY) if code % _GREY == 0 else f"'#{code:06x}'"


def parse_colour(value: object) -> Colour | None:
    """The colour of `#c8140a`, `200 20 10`, `200, 20, 10` or [200, 20, 10]; None for others."""
    if isinstance(value, str):
        text = value.strip()
        if match := re.fullmatch(r"#([0-9a-fA-F]{6})", text):
            red, green, blue = bytes.fromhex(match[1])
            return red, green, blue
        numbers: Sequence[object] = re.split(r"[\s,;]+", text.strip("()[]").strip())
    elif isinstance(value, list | tuple):
        numbers = value
    else:
        return None
    if len(numbers) != 3 or not all(re.fullmatch(r"\d{1,3}", str(n)) for n in numbers):
        return None
    red, green, blue = (int(str(n)) for n in numbers)
    return (red, green, blue) if max(red, green, blue) <= 255 else None


class LabelMap:
    """What every code stands for.

    Args:
        labels: class index, or 255 for ignored pixels, by code.
        hint: ends the error about a code that is not among them: how to put it there.
        ranges: codes that were given as parts of ranges.
    """

    def __init__(
        self, labels: Mapping[int, int], hint: str, ranges: Collection[int] = frozenset()
    ) -> None:
        self.codes = np.array(sorted(labels), np.int32)
        self.labels = np.array([labels[code] for code in self.codes.tolist()], np.uint8)
        self.hint = hint
        exact = [code for code in self.codes.tolist() if code % _GREY == 0 and code not in ranges]
        self.too_close = next(
            (
                (describe_code(low), describe_code(high))
                for low, high in pairwise(exact)
                if high < _DEEP and labels[low] != labels[high] and high - low < _NOISE * _GREY
            ),
            None,
        )

    def __str__(self) -> str:
        return ", ".join(f"{describe_code(code)}: {k}" for code, k in self.as_dict().items())

    def as_dict(self) -> dict[int, int]:
        """The labels by code."""
        return dict(zip(self.codes.tolist(), self.labels.tolist(), strict=True))

    def apply(self, codes: np.ndarray, path: Path) -> np.ndarray:
        """The labels, uint8 [H, W], of codes, int32 [H, W].

        Raises InputError naming `path` and every code that stands for nothing, or for a file whose
        format may have made one value of another.
        """
        place = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        unknown = self.codes[place] != codes
        if unknown.any():
            found, counts = np.unique(codes[unknown], return_counts=True)
            order = np.argsort(-counts, kind="stable")[:_FEW]
            named = ", ".join(describe_code(code) for code in sorted(found[order].tolist()))
            more = f" and {len(found) - _FEW} more" if len(found) > _FEW else ""
            lossy = f"; {LOSSY}" if is_lossy(path) else ""
            raise InputError(
                f"{path}: holds {named}{more} ({unknown.mean():.1%} of the pixels), which "
                f"{self.hint}{lossy}"
            )
        if self.too_close is not None and is_lossy(path):
            low, high = self.too_close
            raise InputError(f"{path}: {low} and {high} cannot be told apart; {LOSSY}")
        return self.labels[place]


def _camvid_colours() -> dict[int | str, int | str]:
    """The 32 colours of CamVid as published, in the usual 11 classes, and those of SegNet."""
    groups = {
        "sky": "808080",
        "building": "800000 008040 40c000 400040 c00080",  # bridge, wall, tunnel, archway
        "pole": "c0c080 000040",  # traffic cone
        "road": "804080 8000c0 c00040",  # lane markings
        "pavement": "0000c0 40c080 8080c0 3c28de",  # parking block, road shoulder; SegNet's
        "tree": "808000 c0c000",  # other vegetation
        "sign symbol": "c08080 808040 004040",  # text, traffic light
        "fence": "404080",
        "car": "400080 4080c0 c080c0 c04080 804040",  # SUV, truck and bus, train, other moving
        "pedestrian": "404000 c08040 4000c0 408040",  # child, cart and pram, animal
        "bicyclist": "0080c0 c000c0",  # motorcycle and scooter
        IGNORE: "000000",
    }
    return {f"#{colour}": name for name, colours in groups.items() for colour in colours.split()}


def _voc_colours() -> dict[int | str, int | str]:
    """VOC's palette, and its cream for the pixels that are not to be counted."""
    colours = [f"#{bytes(colour).hex()}" for colour in voc_palette(256)]
    return {**dict(zip(colours, voc.CLASSES, strict=False)), colours[255]: IGNORE}


CODINGS = {"camvid-colours": _camvid_colours, "voc-colours": _voc_colours}
"""Label maps that are known by name."""
CODING_COLOURS: dict[str, dict[str, Colour]] = {
    "camvid-colours": dict(camvid.COLOURS),
    "voc-colours": {
        name: (int(red), int(green), int(blue))
        for name, (red, green, blue) in zip(voc.CLASSES, voc_palette(21), strict=True)
    },
}
"""The classes of these label maps, with the colours of their pictures."""


def coding_name(value: object) -> str | None:
    """The key of `CODINGS` that a setting names, colours spelt either way; None for others."""
    name = value.replace("colors", "colours") if isinstance(value, str) else None
    return name if name in CODINGS else None


_VALUES = re.compile(r"(\d{1,5})(?:\s*(?:\.\.|-)\s*(\d{1,5}))?")
_RANGE = re.compile(r"(\d{1,5})\s*\.\.\s*(\d{1,5})")
_MAP = "a map of values or colours to classes, {0: background, 255: crack}"


def read_labels_setting(value: Any, root: Path) -> Labels | None:
    """The map that `data.labels` gives: itself, one known by name, or what is in a file.

    Raises InputError for what is no map.
    """
    coding = coding_name(value)
    if coding is not None:
        return CODINGS[coding]()
    content, source = value, "got"
    if isinstance(value, str | Path):
        purpose = f"{_MAP}, {' or '.join(CODINGS)}"
        content, source = read_settings("data.labels", value, root, purpose), f"{value} holds"
    if value is not None and not (isinstance(content, dict) and content):
        raise InputError(f"data.labels: {source} {content!r}, must be {_MAP}")
    return content


def class_names(labels: Labels) -> tuple[str, ...]:
    """The classes that a map speaks of, in its order. Raises InputError where it gives indices."""
    names: dict[str, None] = {}
    for target in labels.values():
        if not isinstance(target, str) or _RANGE.fullmatch(target):
            raise InputError(
                f"data.labels: maps to {target!r}; must be the name of a class or {IGNORE!r}, or "
                f"an index where data.classes are given{_quoted(target)}"
            )
        if target != IGNORE:
            names[target] = None
    return tuple(names)


def first_codes(labels: Labels) -> tuple[int, ...]:
    """The first code of every class that a map names, in the order of `class_names`."""
    codes: dict[int | str, int] = {}
    for key, name in labels.items():
        if name != IGNORE:
            codes.setdefault(name, _key_codes(key)[0])
    return tuple(codes.values())


def map_colours(labels: Labels) -> dict[str, Colour] | None:
    """The first colour of every class of a map that has colours, None where they do not differ."""
    if not any(isinstance(key, str) and "#" in key for key in labels):
        return None
    colours: dict[str, Colour] = {}
    for key, name in labels.items():
        code = _key_codes(key)[0]
        if isinstance(name, str) and name != IGNORE and code < _DEEP:
            colours.setdefault(name, (code >> 16, code >> 8 & 255, code & 255))
    distinct = len(set(colours.values())) == len(class_names(labels))
    return colours if distinct else None


def explicit_map(labels: Labels, classes: Sequence[str]) -> LabelMap:
    """The label map of `data.labels`. Raises InputError for a key or a target that is none."""
    by_code: dict[int, int] = {}
    ranges: set[int] = set()
    for key, target in labels.items():
        codes = _key_codes(key)
        twice = next((code for code in codes if code in by_code), None)
        if twice is not None:
            raise InputError(f"data.labels: {describe_code(twice)} is there twice, once as {key!r}")
        indices = _target_range(key, target, classes, len(codes))
        if indices is not None:
            by_code |= zip(codes, indices, strict=True)
            continue
        by_code |= dict.fromkeys(codes, _target_label(key, target, classes))
        if len(codes) > 1:
            ranges.update(codes)
    hint = "data.labels does not map; map them to a class or to 'ignore' there"
    return LabelMap(by_code, hint, ranges)


def implied_map(classes: Sequence[str], colours: Mapping[str, Colour] | None) -> LabelMap:
    """Without `data.labels`: indices of classes, 255 for ignored pixels, and given colours.

    A code that would mean two things, such as a white class where 255 is ignored, means nothing, so
    that masks which hold it are named instead of being read in one of two ways.
    """
    by_code = {value_code(index): index for index in range(len(classes))}
    by_code[value_code(IGNORE_INDEX)] = IGNORE_INDEX
    doubtful = set()
    for index, name in enumerate(classes):
        if colours is not None:
            code = colour_code(colours[name])
            if by_code.setdefault(code, index) != index:
                doubtful.add(code)
    kept = {code: label for code, label in by_code.items() if code not in doubtful}
    meant = "no class has as its index or colour" if colours else "is no index of a class"
    twofold = (
        f" ({', '.join(map(describe_code, sorted(doubtful)))} could be an index and a colour)"
        if doubtful
        else ""
    )
    return LabelMap(
        kept,
        f"{meant}{twofold}: indices are 0..{len(classes) - 1} and {IGNORE_INDEX} for ignored "
        "pixels; anything else needs --data.labels '{VALUE or \"#RRGGBB\": CLASS or ignore, ...}'",
    )


def _key_codes(key: object) -> list[int]:
    """The codes that a key of `data.labels` means: of a colour, a value or a range of values."""
    colour = parse_colour(key)
    if colour is not None:
        return [colour_code(colour)]
    match = _VALUES.fullmatch(str(key).strip()) if isinstance(key, int | str) else None
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= 65535:
        raise InputError(
            f"data.labels: key {key!r} must be a value, 0..65535, a range of them such as 128..255 "
            "or a colour such as '#c8140a'"
        )
    return [value_code(value) for value in range(first, last + 1)]


def _target_range(key: object, target: object, classes: Sequence[str], count: int) -> range | None:
    """The indices that as many values in a row mean, as 0..149 of 1..150; None for one target."""
    match = _RANGE.fullmatch(target) if isinstance(target, str) else None
    if match is None or target in classes:
        return None
    indices = range(int(match[1]), int(match[2]) + 1)
    if len(indices) != count or indices[-1] >= len(classes):
        raise InputError(
            f"data.labels: {key!r} is mapped to {target!r}; must be {count} of the indices of "
            f"data.classes, 0..{len(classes) - 1}"
        )
    return indices


def _target_label(key: object, target: object, classes: Sequence[str]) -> int:
    if target == IGNORE or (target == IGNORE_INDEX and not isinstance(target, bool)):
        return IGNORE_INDEX
    if isinstance(target, str) and target in classes:
        return list(classes).index(target)
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(classes):
        return target
    raise InputError(
        f"data.labels: {key!r} is mapped to {target!r}; must be {IGNORE!r} or one of the classes "
        f"{', '.join(classes)}{_quoted(target)}"
    )


def _quoted(target: object) -> str:
    """How to give the name of a class that YAML takes for true or false, as the end of an error."""
    return "; a name such as yes or no needs quotes" if isinstance(target, bool) else ""
