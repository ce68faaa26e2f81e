"""Parsing the options of a command, with config files; errors are InputErrors of one line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader
from jsonargparse.typing import Path as ConfigPath

from deepcrf_ext.cli.help import HelpFormatter
from deepcrf_ext.cli.messages import plain_message
from deepcrf_ext.errors import InputError
from deepcrf_ext.libraries import require
from deepcrf_ext.ops import _backend
from deepcrf_ext.settings_files import home_expanded, read_text, refuse_repeated_keys

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

    def read(self: ConfigPath) -> str:
        if str(self) == "-":  # the standard input
            return own(self)
        try:
            return read_text(Path(self.absolute))
        except InputError as error:
            raise InputError(f"config: {error}") from error

    own = ConfigPath.read_text
    ConfigPath.read_text = read  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigPath.read_text = own  # type: ignore[method-assign]


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


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
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


def parse_values(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """The parsed arguments, each checked by itself. Raises InputError in one line.

    Options are spelt with dashes, as in --data.train-split; underscores are taken too. The settings
    that they stand for, in config files and in the result, have underscores.
    """
    options = _spell_with_dashes(parser)
    for action in parser._actions:
        action.default = _without_dataclasses(action.default)
    given = [_respell(word, options) for word in argv]
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
    """`parse_values` for the options that choose defaults; --help and --print-config come later."""
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
        raise InputError(plain_message(str(error), options)) from error


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
    """A word of a command line; if it begins with the name of an option, that is in dashes.

    What follows keeps its spelling: of --model.relations.above_below.step only --model.relations is
    an option.
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
