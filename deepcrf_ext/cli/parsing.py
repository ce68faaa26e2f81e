"""What the commands share: parsing with config files, and errors as one line with an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.libraries import require

EXIT_TRAINING = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130


def make_parser(prog: str, description: str) -> ArgumentParser:
    """A parser with `--config FILE.yaml`, whose values later options override."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument(
        "--config", action="config", help="YAML file of settings; options after it override it."
    )
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """The parsed arguments with dataclass groups built. Raises InputError in one line."""
    try:
        arguments = parser.instantiate(parser.parse_args(argv))
    except ArgumentError as error:
        cause = error.__cause__ or error.__context__
        message = cause if isinstance(cause, InputError) else error
        raise InputError(_plain(" ".join(str(message).split()))) from error
    require("cv2")  # which loads lazily: --help works without, and a run fails before it begins
    return arguments


_VALUE = re.compile(
    r'Parser key "(?P<key>[^"]+)": (?:'
    r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)|"
    r"Not of type (?P<name>\w+): (?P<number>\S+) does not conform to restriction (?P<rule>.*)|"
    r"Does not validate.* Subtypes: \[(?P<types>.*)\] Errors: .* Given value: (?P<given>.*))"
)
"""A message of jsonargparse about the value of an option, on one line."""


def _plain(message: str) -> str:
    """The message in the form of this package's own, without Python's names of types."""
    match = _VALUE.fullmatch(message)
    if match is None:
        return message
    key, value = match["key"], match["value"] or match["number"] or match["given"]
    if match["rule"]:
        return f"{key}: got {value}, must be {match['name']}, {match['rule']}"
    types = match["type"] or f"one of {match['types']}"
    for pattern, plain in (
        (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
        (r"(?:typing\.)?Literal\[(.*?)\]", r"one of \1" if match["type"] else r"\1"),
        (r"\b(?:\w+\.)+(\w+)", r"\1"),
        (r"\bNoneType\b", "null"),
    ):
        types = re.sub(pattern, plain, types)
    return f"{key}: got {value}, must be {types}"


def run_command(body: Callable[[], int | None]) -> int:
    """Runs a command's body and returns its exit code.

    Bad input and failing files end in one `error:` line on stderr and code 2, a training that
    cannot go on in code 1, Ctrl-C in code 130.
    """
    try:
        return body() or 0
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_TRAINING
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        text = f"{error.filename}: {error.strerror}" if named else str(error)
        print(f"error: {text}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
