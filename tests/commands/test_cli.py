"""What a user sees of bad options and failing files: one plain line and an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from deepcrf_ext.cli import parsing
from deepcrf_ext.errors import InputError, TrainingError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "many"], "count: got many, must be int"),
        (["--size", "0"], "size: got 0, must be one of PositiveInt, null"),
        (["--box", "[1, 2, 3]"], "box: got [1, 2, 3], must be one of tuple[int, int], null"),
        (["--kind", "c"], "kind: got c, must be one of 'a', 'b'"),
        (["--either", "c"], "either: got c, must be one of 'a', 'b', bool"),
        (["--alpha", "2"], "alpha: got 2, must be ClosedUnitInterval, v>=0 and v<=1"),
        (["--other", "1"], "unrecognized arguments: --other 1"),
        (["--config", "/not/here.yaml"], "/not/here.yaml"),
    ],
)
def test_bad_values_are_told_plainly(arguments, message):
    parser = parsing.make_parser("program", "")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--size", type=PositiveInt | None)
    parser.add_argument("--box", type=tuple[int, int] | None)
    parser.add_argument("--kind", type=Literal["a", "b"], default="a")
    parser.add_argument("--either", type=Literal["a", "b"] | bool, default="a")
    parser.add_argument("--alpha", type=ClosedUnitInterval, default=0.5)
    with pytest.raises(InputError) as caught:
        parsing.parse(parser, arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a: must be b"), 2, "error: a: must be b\n"),
        (TrainingError("at step 3"), 1, "error: at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError("no file in it"), 2, "error: no file in it\n"),
    ],
)
def test_errors_are_one_line_and_a_code(error, code, line, capsys):
    def body() -> None:
        raise error

    assert parsing.run_command(body) == code
    assert capsys.readouterr() == ("", line)


def test_an_error_of_the_system_names_the_file(tmp_path: Path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert parsing.run_command((file / "below").mkdir) == 2
    assert capsys.readouterr().err == f"error: {file / 'below'}: Not a directory\n"
