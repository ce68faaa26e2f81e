"""What jsonargparse says of bad options, in the words of this package."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection


def plain_message(message: str, options: Collection[str]) -> str:
    """A message about these options as one of this package: on one line, without Python's names of
    types, and with what an unknown option was probably meant to be."""
    plain = _plain(" ".join(message.split()), options)
    return plain + _suggestion(plain, options)


def _suggestion(message: str, options: Collection[str]) -> str:
    """What an unknown option in a message was probably meant to be, to stand behind it."""
    match = re.search(r"nrecognized arguments: (--[^\s=]+)|^(\S+): unknown setting", message)
    if match is None:
        return ""
    name = (match[1] or f"--{match[2]}").replace("_", "-")
    if name in options:
        return "; it goes behind the subcommand"
    similar = [option for option in sorted(options) if option.endswith(f".{name[2:]}")]
    similar += difflib.get_close_matches(name, options, 1, cutoff=0.8)
    return f"; did you mean {similar[0]}?" if similar else ""


_VALUE = re.compile(
    r'Parser key "(?P<key>[^"]+)": (?:'
    r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)|"
    r"Not of type (?P<name>\w+): (?:(?P<number>\S+) does not conform to .*|.*: '(?P<text>.*)')|"
    r"Not a valid subclass of (?P<group>\w+)\. Got value: (?P<item>.*) Subclass types .*|"
    r"Does not validate.* Subtypes: \[(?P<types>.*)\] Errors: .* Given value: (?P<given>.*))"
)
"""A message of jsonargparse about the value of an option, on one line."""
_INNER = re.compile(r'Parser key "([^"]+)": Problem with given class_path .*?: Parser key "')
"""The start of one about a part of the value of an option."""

_WORDS = {
    "PositiveInt": "a positive whole number",
    "NonNegativeInt": "a whole number of at least 0",
    "PositiveFloat": "a positive number",
    "NonNegativeFloat": "a number of at least 0",
    "ClosedUnitInterval": "a number from 0 to 1",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "NoneType": "null",
}


def _plain(message: str, options: Collection[str]) -> str:
    if match := re.fullmatch(r"the following arguments are required: (.*)", message):
        names = [_as_option(name, options) for name in match[1].split(", ")]
        return f"{', '.join(names)}: must be given"
    if match := re.match(r'expected "(.+)" to be one of {(.+)}, but it was not provided', message):
        return f"{match[1]}: must be given, {match[2].replace(',', ' or ')}"
    if match := re.match(r'Parser key "([^"]+)": Unable to load config \'(.*?)\'', message):
        return f"{match[1]}: got {match[2]}, must be a file of settings; each is --{match[1]}.NAME"
    if match := re.fullmatch(r"Group '(.+)' does not accept option '(.+)'", message):
        return f"{match[1]}.{match[2]}: unknown setting"
    if match := re.fullmatch(r"Option '(.+)' is not accepted", message):
        return f"{match[1]}: unknown setting"
    if match := re.match(r"Unexpected config: ?(.{0,40})|Problems parsing config: (.*)", message):
        held = match[2] or (f"holds {match[1]}" if match[1] else "holds none")
        return f"config: must be a file of settings in YAML, as epochs: 12 ({held})"
    message = _INNER.sub(r'Parser key "\1.', message)
    match = _VALUE.fullmatch(message)
    if match is None:
        return re.sub(r'^Parser key "([^"]+)": ', r"\1: ", message)
    groups = match.groupdict()
    values = (groups[name] for name in ("value", "number", "text", "item", "given"))
    value = next(value for value in values if value is not None)
    types = match["type"] or match["name"] or match["group"] or match["types"]
    for pattern, plain in (
        (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
        (r"(?:typing\.)?Literal\[(.*?)\]", r"\1"),
        (r"\b(?:\w+\.)+(\w+)", r"\1"),
        (r"\b\w+Config\b", "{...}"),
        (r"\b(?:tuple|list)\[(.*?)\]", r"[\1]"),
        (r"\b(?:tuple|list)\b", "a list as [A, B]"),
    ):
        types = re.sub(pattern, plain, types)
    not_in_a_list = r", (?![^\[]*\])"
    *others, last = (_WORDS.get(kind, kind) for kind in re.split(not_in_a_list, types))
    wanted = f"{', '.join(others)} or {last}" if others else last
    return f"{match['key']}: got {value}, must be {wanted}"


def _as_option(name: str, options: Collection[str]) -> str:
    """An argument that an error calls by its key, as it is typed."""
    spelt = name.replace("_", "-")
    ends = (f"--{spelt}", f"--{spelt.rpartition('.')[2]}")
    return next((option for option in ends if option in options), name)
