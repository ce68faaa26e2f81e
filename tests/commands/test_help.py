"""What --help says of the commands."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse.typing import PositiveInt

from deepcrf_ext.__main__ import COMMANDS
from deepcrf_ext.__main__ import main as list_commands
from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.help import typed

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")

WITH_SUBCOMMANDS = ["explain compatibility", "explain image"]


def help_of(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> str:
    """What `python -m deepcrf_ext.COMMAND OPTIONS --help` prints, on one line."""
    name, *subcommand = command.split()
    monkeypatch.setattr(sys, "argv", [name, *subcommand, *options, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"deepcrf_ext.{name}", run_name="__main__")
    assert not ended.value.code
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", [*COMMANDS, *WITH_SUBCOMMANDS])
def test_help_is_no_python(command: str, monkeypatch, capsys):
    text = help_of(command, monkeypatch, capsys)
    for wrong in ("<class", "type:", "Union[", "Literal[", "None", "True", "False", "==", ": )"):
        assert wrong not in text
    assert re.findall(r"--[a-z.]*_[a-z_]*", text) == [], "options are spelt with dashes"


@pytest.mark.parametrize(
    ("command", "options", "learning_rate"),
    [
        ("train", (), "0.05"),
        ("train", ("--model.preset", "paper"), "0.001"),
        ("reproduce", ("--budget=paper", "--data.dataset=voc"), "0.001"),
        ("compare_objectives", ("--optim.optimiser", "adamw"), "0.001"),
    ],
)
def test_help_has_the_defaults_that_other_options_set(
    command: str, options: tuple[str, ...], learning_rate: str, monkeypatch, capsys
):
    text = help_of(command, monkeypatch, capsys, *options)
    assert f"Learning rate of new layers. (default: {learning_rate})" in text


def test_what_is_said_of_an_option(capsys):
    parser = parsing.make_parser("program", "In short.\n\nAt length,\nit writes\n\n  a  b\n  c  d")
    parser.add_argument("--count", type=PositiveInt, default=3, help="Some.")
    parser.add_argument("--needed", type=Path, required=True, help="It.")
    parser.add_argument("--size", type=int | None, help="Null is any.")
    parser.add_argument("--file", type=Path | None, help="One.")
    parser.add_argument("--rate", type=float | None, help="Speed. Default: high.")
    parser.add_argument("--fast", action="store_true", help="Run.")
    parser.add_argument("--bare", type=int, default=7)
    with pytest.raises(SystemExit):
        parsing.parse(parser, ["--help"])
    text = capsys.readouterr().out
    assert "\nIn short.\n\nAt length, it writes\n\n  a  b\n  c  d\n\n" in text
    for line in (
        *("Some. (default: 3)", "It. (required)", "Null is any. (default: null)", "One."),
        *("Speed. Default: high.", "Run.", "--bare BARE (default: 7)"),
    ):
        assert re.search(rf" {re.escape(line)}\n".replace(r"\ ", r"\s+"), text), line


def test_defaults_as_they_would_be_typed():
    value = {"a": None, "b": [True, 1 / 3], "c": (2, "x"), "d": 1e-5}
    assert typed(value) == "{a: null, b: [true, 0.3333], c: [2, x], d: 1e-05}"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [(["train", "--epochs", "1"], "deepcrf_ext.train, with"), (["x"], "deepcrf_ext.COMMAND, with")],
)
def test_a_command_with_a_space_for_the_dot(words, wanted, capsys):
    assert list_commands(words) == 2
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize("module", ["deepcrf_ext", "deepcrf_ext.env"])
def test_what_is_listed_may_be_read_in_part(module):
    """As `head -1` does."""
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_list_of_commands(capsys):
    """It is printed, stands in the documents, and is whole."""
    assert list_commands([]) == list_commands(["--help"]) == 0
    printed = capsys.readouterr().out
    document = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, text in COMMANDS.items():
        assert f"  {name} " in printed
        assert f"| `{name}` | {text} " in document
    package = ROOT / "deepcrf_ext"
    runnable = [
        path
        for path in package.rglob("*.py")
        if '\nif __name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    names = {(path.parent if path.stem == "__main__" else path).stem for path in runnable}
    assert names - {"deepcrf_ext"} == set(COMMANDS)
