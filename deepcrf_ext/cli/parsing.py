"""What the commands share: parsing with config files, and errors as one line with an exit code."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonargparse
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader

from deepcrf_ext.cli.help import HelpFormatter
from deepcrf_ext.cli.streams import lasting_streams
from deepcrf_ext.data.settings_files import home_expanded, read_text, refuse_repeated_keys
from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.libraries import require
from deepcrf_ext.ops import _backend

EXIT_TRAINING = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

_MODE = "deepcrf_ext"
_YAML = get_loader("yaml")


def _load(text: str) -> Any:
    """A value or a file of settings as jsonargparse reads YAML, but what is a comment alone, as
    '#c8140a' or '#4', is text, and no key may be there twice. Raises InputError, YAMLError."""
    if text.lstrip().startswith("#") and "\n" not in text:
        return text
    refuse_repeated_keys(text)
    return _YAML(text)


set_loader(_MODE, _load, (yaml.YAMLError,))


@contextmanager
def _utf8_files() -> Iterator[None]:
    """Within it jsonargparse reads files of settings, all of them or a part as --data FILE, as
    UTF-8, whatever the locale, and UTF-16 with a mark in front."""

    def read(self: jsonargparse.Path) -> str:
        try:
            return read_text(Path(self.absolute))
        except InputError as error:
            raise InputError(f"config: {error}") from error

    with patch.object(jsonargparse.Path, "read_text", read):
        yield


def make_parser(prog: str, description: str) -> ArgumentParser:
    """A parser with `--config FILE.yaml`, whose values later options override."""
    parser = ArgumentParser(
        prog=prog,
        description=description,
        exit_on_error=False,
        print_config="--print-config",
        allow_abbrev=False,
        parser_mode=_MODE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file of settings; options after it override it."
    )
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """`parse_values` with dataclass groups built. Raises InputError for what does not fit them."""
    arguments = parse_values(parser, argv)
    with _one_line_errors(()):
        arguments = parser.instantiate(arguments)
    require("cv2")  # which loads lazily: --help works without, and a run fails before it begins
    try:
        _backend.native()  # likewise
    except ImportError as error:
        raise InputError(str(error)) from error
    return arguments


def parse_values(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """The parsed arguments, each checked by itself. Raises InputError in one line.

    Options are spelt with dashes, as in --data.train-split; underscores are taken too. The settings
    that they stand for, in config files and in the result, have underscores.
    """
    options = _spell_with_dashes(parser)
    for action in parser._actions:
        action.default = _without_dataclasses(action.default)
    given = [_respell(word, options) for word in (sys.argv[1:] if argv is None else argv)]
    with _one_line_errors(options), _utf8_files():
        arguments: Namespace = parser.parse_args(given)
    for name in parser.groups or ():
        if name in arguments and not isinstance(arguments[name], Namespace):
            raise InputError(
                f"{name}: got {arguments[name]}, must be settings by name, as --{name}.NAME"
            )
    _refuse_comments(arguments, given)
    for name, value in list(arguments.items()):
        arguments[name] = _home_expanded(value)
    return arguments


def _home_expanded(value: Any) -> Any:
    """A path with the home folder for the ~ that no shell has replaced, as in --output=~/runs; any
    other value as it is."""
    if isinstance(value, list):
        return [_home_expanded(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith("~/")):
        return type(value)(home_expanded(value))
    return value


def parse_first(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """`parse_values` to find what sets other defaults, which --help and --print-config print."""
    wants_help = [word for word in argv if word in ("-h", "--help")]
    required = [action for action in parser._actions if action.required and wants_help]
    for action in required:
        action.required = False
    try:
        others = [word for word in argv if word not in wants_help]
        return parse_values(parser, [word for word in others if not word.startswith("--print")])
    finally:
        for action in required:
            action.required = True


def is_resume(argv: Sequence[str]) -> bool:
    """Whether a command is to go on with what it wrote, beside which few options can be given."""
    return any(word == "--resume" or word.startswith("--resume=") for word in argv)


def _without_dataclasses(value: Any) -> Any:
    """A default with mappings for dataclasses inside, as --config reads and --print-config writes
    them."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _without_dataclasses(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_dataclasses, value))
    return value


def _refuse_comments(arguments: Namespace, given: Sequence[str]) -> None:
    """Raises InputError for a value that begins with # and became null, as a comment of YAML."""
    words = [part for word in given for part in word.split("=", 1)]
    for option, value in pairwise(words):
        name = option.lstrip("-").replace("-", "_")
        if value.startswith("#") and name in arguments and arguments[name] is None:
            raise InputError(
                f"{name}: got {value}, which YAML takes for a comment; a file is ./{value}"
            )


@contextmanager
def _one_line_errors(options: Collection[str]) -> Iterator[None]:
    """Errors of a parser with these options as InputErrors."""
    try:
        yield
    except ArgumentError as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from error
        message = _plain(" ".join(str(error).split()), options)
        raise InputError(message + _suggestion(message, options)) from error


def _spell_with_dashes(parser: ArgumentParser) -> set[str]:
    """Gives every option, of subcommands too, dashes for underscores; returns their names."""
    options: set[str] = set()
    for action in parser._actions:
        action.option_strings = [option.replace("_", "-") for option in action.option_strings]
        parser._option_string_actions.update(dict.fromkeys(action.option_strings, action))
        options.update(option for option in action.option_strings if option.startswith("--"))
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                options |= _spell_with_dashes(subparser)
    return options


def _respell(word: str, options: Set[str]) -> str:
    """A word of a command line; the name of an option, or of one that it is a part of, in dashes.

    --model.relations.above_below.step 2 is about a part of --model.relations whose name is as it
    is.
    """
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    pieces = name.split(".")
    for count in range(len(pieces), 0, -1):
        option = ".".join(pieces[:count]).replace("_", "-")
        if option in options:
            return ".".join([option, *pieces[count:]]) + equals + value
    return word


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
    """The message in the form of this package's own, without Python's names of types."""
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


def describe(error: OSError) -> str:
    """An error of the system in words: the file, where it is known, and what is the matter."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def run_command(body: Callable[[], int | None]) -> int:
    """Runs a command's body and returns its exit code.

    Bad input and failing files end in one `error:` line on stderr and code 2, a training that
    cannot go on in code 1, Ctrl-C in code 130. No work ends as nobody reads what it prints.
    """
    # Of every tag of a GeoTIFF that it does not know, OpenCV would tell.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    with lasting_streams():
        try:
            code = body() or 0
            sys.stdout.flush()
            return code
        except TrainingError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_TRAINING
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_INPUT
        except OSError as error:
            print(f"error: {describe(error)}", file=sys.stderr)
            return EXIT_INPUT
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
