"""What a user sees of bad options and failing files: one plain line and an exit code."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from deepcrf_ext import compare_objectives, explain, reproduce
from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.nn.relations import RelationConfig
from deepcrf_ext.train import parse_new_run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "many"], "count: got many, must be a whole number"),
        (["--size", "0"], "size: got 0, must be a positive whole number or null"),
        (["--box", "[1, 2, 3]"], "box: got [1, 2, 3], must be [int, int] or null"),
        (["--kind", "c"], "kind: got c, must be 'a' or 'b'"),
        (["--either", "c"], "either: got c, must be 'a', 'b' or true or false"),
        (["--alpha", "2"], "alpha: got 2, must be a number from 0 to 1"),
        (["--other", "1"], "unrecognized arguments: --other 1"),
        (["--size", "1.5"], "size: got 1.5, must be a positive whole number or null"),
        (["--some", "1.5"], "some: got 1.5, must be a positive whole number"),
        (
            ["--relations", "{b: {kind: a}}"],
            "relations.kind: got a, must be 'surrounding', 'above_below'",
        ),
        (["--relations", "{a: 3}"], "relations: got 3, must be {...}"),
        (
            ["--group", "camvid"],
            "group: got camvid, must be a file of settings; each is --group.NAME",
        ),
        (["--config", "/not/here.yaml"], "config: File does not exist: '/not/here.yaml'"),
        (["--group", "{kind: surrounding, kind: above_below}"], "the key 'kind' is there twice"),
        (["--relations", "{a: 1, a: 2}"], "relations: the key 'a' is there twice"),
        (["--free", "{a: 1, a: 2}"], "free: the key 'a' is there twice"),
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
    parser.add_argument("--some", type=PositiveInt, default=1)
    parser.add_class_arguments(RelationConfig, "group")
    parser.add_argument("--relations", type=dict[str, RelationConfig], default={})
    parser.add_argument("--free", type=Any, default=None)
    with pytest.raises(InputError) as caught:
        parsing.parse(parser, arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_looks_like_a_comment_is_kept():
    parser = parsing.make_parser("program", "")
    parser.add_argument("--free", type=dict[str, Any] | str | None)
    parser.add_argument("--path", type=Path | None)
    given = parsing.parse(parser, ["--free", '{a: "#4"}', "--path", "#1"])
    assert (given.free, given.path) == ({"a": "#4"}, Path("#1"))


@pytest.mark.parametrize("option", [["--data.labels", "#4"], ["--data.classes=#4"]])
def test_a_comment_is_no_null(option: list[str]):
    with pytest.raises(InputError, match="^data.*: got #4, which YAML takes for a comment; a file"):
        parse_new_run(option)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: {clases: [a, b]}", "data.clases: unknown setting; did you mean --data.classes?"),
        (b"epochz: 3", "epochz: unknown setting; did you mean --epochs?"),
        (b"data: {crop: null, crop: [8, 8]}", "the key 'crop' is there twice"),
        (b"data: 3", "data: got 3, must be settings by name, as --data.NAME"),
        (b"model:\nepochs: 3", "model: got None, must be settings by name"),
        (b"PK\x03\x04\xff\xfe\x00", "config: "),
        (b"- a\n" * 99, "config: must be a file of settings in YAML, as epochs: 12 (holds - a"),
        (b"", "config: must be a file of settings in YAML, as epochs: 12 (holds none)"),
        (
            b'{"step": 1}\n{"step": 2}\n',
            "config: must be a file of settings in YAML, as epochs: 12",
        ),
    ],
)
def test_bad_files_of_settings_are_told_plainly(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        parse_new_run(["--config", str(tmp_path / "c.yaml")])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_file_of_settings_names_others_beside_it(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("model: m.yaml\nepochs: 3")
    (tmp_path / "m.yaml").write_text("{hidden: 7, iterations: 5}")
    config = parse_new_run(["--config", str(tmp_path / "c.yaml")])
    assert (config.epochs, config.model.hidden, config.model.iterations) == (3, 7, 5)


def test_files_of_settings_are_utf8_whatever_the_locale(tmp_path: Path):
    """Windows puts a mark in front."""
    options = []
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        for option, text in (("--config", "data: {}"), ("--data", "{}")):
            file = tmp_path / f"{option[2:]}-{encoding}.yaml"
            file.write_text(text.replace("{}", "{classes: [Straße, 背景]}"), encoding=encoding)
            options.append([option, str(file)])
    program = (
        "import ast, sys; from deepcrf_ext.train import parse_new_run\n"
        "for option in ast.literal_eval(sys.argv[1]):\n"
        "    print(option, ascii(parse_new_run(option).data.classes))"
    )
    ascii_alone = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", program, repr(options)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **ascii_alone}, check=True
    )
    wanted = ascii(["Straße", "背景"])
    assert done.stdout.splitlines() == [f"{option} {wanted}" for option in options]


def test_settings_from_the_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("epochs: 3"))
    assert parse_new_run(["--config", "-"]).epochs == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("parse", "arguments"),
    [
        (parse_new_run, []),
        (parse_new_run, ["--model.preset", "cvpr16", "--optim.optimiser", "adamw"]),
        (parse_new_run, ["--objective", "[{objective: piecewise}, {objective: end_to_end}]"]),
        (compare_objectives.parse_settings, ["--model.preset", "paper", "--output", "x"]),
        (reproduce.parse, ["--budget", "small", "--output", "x", "--examples", "2"]),
    ],
)
def test_printed_settings_are_those_of_the_command_and_can_be_read_back(
    parse: Callable[[list[str]], Any], arguments: list[str], tmp_path: Path, capsys: Any
):
    with pytest.raises(SystemExit):
        parse([*arguments, "--print-config"])
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert parse(["--config", str(tmp_path / "c.yaml")]) == parse(arguments)


def test_paths_begin_at_home(tmp_path: Path, monkeypatch):
    """Where no shell has replaced the ~, or a folder of this name would be made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("{output: ~/runs/x, init_from: ~/runs/y}")
    config = parse_new_run(["--config=~/c.yaml", "--data.root=~/data"])
    assert config.output == tmp_path / "runs" / "x"
    assert config.init_from == f"{tmp_path}/runs/y"
    assert config.data.root == tmp_path / "data"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("--resume run", True), ("--device cpu --resume=run", True), ("--resumed x resume", False)],
)
def test_what_is_to_go_on(arguments: str, expected: bool):
    assert parsing.is_resume(arguments.split()) == expected


def test_what_is_missing_is_named_as_it_is_typed():
    parser = parsing.make_parser("program", "")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--the_root", required=True)
    with pytest.raises(InputError, match="^inputs, --the-root: must be given$"):
        parsing.parse(parser, [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.train-split", "a", "--warm-start=0", "--model.head-per-scale", "true"],
        ["--data.train_split=a", "--warm_start", "0", "--model.head_per_scale", "true"],
        ["--data", "{train_split: a}", "--warm-start", "0", "--model", "{head_per_scale: true}"],
    ],
)
def test_options_are_taken_with_dashes_and_with_underscores(arguments):
    config = parse_new_run(arguments)
    assert (config.data.train_split, config.warm_start) == ("a", 0)
    assert config.model.head_per_scale


def test_a_part_of_an_option_keeps_its_name():
    parser = parsing.make_parser("program", "")
    parser.add_argument("--some_numbers", type=dict[str, int], default={})
    for option in ("--some-numbers.a_b", "--some_numbers.a_b"):
        assert parsing.parse(parser, [option, "3"]).some_numbers == {"a_b": 3}


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--train_split", "--data.train-split"),
        ("--data.trainsplit", "--data.train-split"),
        ("--epochz", "--epochs"),
        ("--colour", None),
        ("--data.oldkey", None),
    ],
)
def test_an_unknown_option_is_told_what_it_may_be(option, meant):
    with pytest.raises(InputError) as caught:
        parse_new_run([option, "3"])
    end = "" if meant is None else f"; did you mean {meant}?"
    assert str(caught.value) == f"unrecognized arguments: {option} 3{end}"


def test_a_missing_subcommand_is_told(capsys):
    assert explain.main([]) == 2
    message = "error: command: must be given, compatibility or image\n"
    assert capsys.readouterr().err == message


def test_an_option_before_its_subcommand_is_told(capsys):
    assert explain.main(["--device=cpu", "image"]) == 2
    assert "--device=cpu; it goes behind the subcommand\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a: must be b"), 2, "error: a: must be b\n"),
        (TrainingError("at step 3"), 1, "error: at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError("no file in it"), 2, "error: no file in it\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
    ],
)
def test_errors_are_one_line_and_a_code(error, code, line, capsys):
    def body(argv: Sequence[str]) -> None:
        raise error

    assert run_command(body, []) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_ends_with_the_code_that_it_returns(returned: int | None, code: int):
    assert run_command(lambda _: returned, []) == code


@pytest.mark.parametrize("argv", [["--a", "b"], None])
def test_a_command_takes_the_arguments_of_its_process_unless_others_are_given(
    argv: list[str] | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["program", "--c"])
    given: list[str] = []
    run_command(given.extend, argv)
    assert given == (["--c"] if argv is None else argv)


def test_an_error_of_the_system_names_the_file(tmp_path: Path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert run_command(lambda _: (file / "below").mkdir(), []) == 2
    assert capsys.readouterr().err == f"error: {file / 'below'}: Not a directory\n"


PROGRAM = """
import sys
from pathlib import Path
from deepcrf_ext.cli.running import run_command
from tqdm import tqdm

def body(_):
    for number in tqdm(range(int(sys.argv[2])), disable=False):
        print("line", number, flush=number % 7 == 6)
    if number > 7:
        tqdm.write("written", file=sys.stdout)
        sys.stdout.flush()
    print("shown", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text("finished")

sys.exit(run_command(body))
"""


@pytest.fixture
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs buffer what they print, whatever the shell of the tests says."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.mark.usefixtures("buffered")
@pytest.mark.parametrize(
    ("shell", "lines"),
    [
        ("{} | head -1", 20_000),
        ("{} 2>&1 | head -1", 20_000),
        ("{} | true", 3),  # which fit in the buffer
        ("{} >&-", 20_000),
        ("{} >&- 2>&-", 20_000),
    ],
)
def test_work_goes_on_when_nobody_reads_what_it_prints(shell: str, lines: int, tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f"{sys.executable} program.py result {lines}; echo $? > code"
    line = shell.format(f"({command})")
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "result").read_text() == "finished"
    assert (tmp_path / "code").read_text() == "0\n"


@pytest.mark.usefixtures("buffered")
@pytest.mark.parametrize("lines", [20_000, 3])
def test_a_log_on_a_full_disk_is_one_line(lines: int, tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "program.py", "result", str(lines)]
        ended = subprocess.run(
            command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "error: No space left on device"
