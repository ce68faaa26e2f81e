"""What the documents show works: Python code runs, and commands have the options they are given."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_run import write_run

from deepcrf_ext.cli import parsing

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in a language; "" is the shell."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)
    return [block for kind, block in found if kind == language]


def commands() -> Iterator[tuple[str, list[str]]]:
    """The module of the package and the arguments of every command that the documents show."""
    for document in DOCUMENTS:
        for block in blocks(document, ""):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.replace("$p", "unary"), comments=True)
                start = next((i for i, word in enumerate(words) if word == "-m"), None)
                if start is None or not words[start + 1].startswith("deepcrf_ext."):
                    continue
                arguments = [word for word in words[start + 2 :] if word not in ("...", "&")]
                yield words[start + 1], arguments


class Parsed(BaseException):
    """The arguments of a command have been taken."""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [case for case in commands() if case[0] not in ("deepcrf_ext.env", "deepcrf_ext.pydensecrf")],
    ids=lambda value: value.rpartition(".")[2] if isinstance(value, str) else " ".join(value)[:40],
)
def test_a_command_has_the_options_it_is_given(
    module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = parsing.parse

    def stop(*given: Any) -> None:
        parse(*given)
        raise Parsed

    monkeypatch.chdir(ROOT)  # for --config configs/...
    monkeypatch.setattr(parsing, "parse", stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__")


NUMBERS = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=NUMBERS)


def integers(end: int, *shape: int) -> torch.Tensor:
    return torch.randint(end, shape, generator=NUMBERS)


PHOTOS = {"photos": 255 * random(2, 3, 6, 8).sigmoid(), "scribbles": integers(21, 2, 6, 8)}
GRID = {
    "network": torch.nn.Conv2d(3, 21, 4, stride=4),
    "images": random(2, 3, 24, 32).tanh(),
    "logits": random(2, 21, 6, 8).requires_grad_(),
    "features": random(2, 256, 6, 8),
    "labels": integers(21, 2, 24, 32),
}
GRAPH = {
    **{"source_index": integers(9, 30), "target_index": integers(9, 30), "num_nodes": 9},
    **{"features": random(9, 64), "labels": integers(5, 9), "unary": random(9, 5)},
    **{"unary_energies": random(1, 3, 4, 6, 7), "scan": 255 * random(1, 1, 4, 6, 7).sigmoid()},
}
SET = [(integers(256, 32, 40, 3).byte().numpy(), integers(2, 32, 40).byte().numpy())] * 2
GIVEN = {
    "README.md": [GRID, {}, {"width": 8, "height": 6, "n_labels": 3}, PHOTOS, GRAPH],
    "python.md": [
        {},
        {},
        {"points": random(20, 3), "edge_index": integers(7, 2, 12), "num_nodes": 7},
        {},
        {"probabilities": random(1, 3, 6, 8).softmax(1), "images": PHOTOS["photos"][:1]},
        {
            "cross_entropy": torch.nn.functional.cross_entropy,
            **GRID,
            **PHOTOS,
            "images": PHOTOS["photos"],
        },
        {},
    ],
    "moving.md": [
        {"points": random(9, 3), "colours": random(9, 3).sigmoid(), "num_labels": 4}
        | {"logits": random(9, 4).requires_grad_()},
        {"coarse_logits": random(2, 21, 3, 4), "normalised_images": random(2, 3, 24, 32)},
        {"photos": 255 * random(2, 3, 24, 32).sigmoid(), "labels": integers(21, 2, 24, 32)},
        {"unary": random(1, 3, 4, 6, 7), "scans": integers(900, 1, 2, 4, 6, 7).short()},
        {"scribbles": integers(256, 2, 24, 32), "depth": random(2, 1, 24, 32).abs()}
        | {"probabilities": random(2, 21, 24, 32).softmax(1)},
        {"length": 7, "transitions": random(5, 5), "emissions": random(7, 5)}
        | {"labels_of_words": integers(5, 7)},
    ],
    "data.md": [{"any_torch_dataset": SET, "another": SET}],
}
"""What each Python block of a document takes for granted, beside what those before it define."""


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_code_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "NAME", tmp_path / "camvid")
    Image.fromarray(SET[0][0]).save("photo.jpg")
    given = GIVEN.get(document.name, [])
    names: dict[str, Any] = {}
    for block, further in zip(blocks(document, "python"), given, strict=True):
        names |= further
        exec(compile(block, document.name, "exec"), names)


def anchors(document: Path) -> set[str]:
    """What a link to a heading of a document may end in."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in re.findall(
        r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")
    ):
        target = document.parent / path if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def benchmarks() -> dict[str, set[str]]:
    """The options that the documents give to each benchmark, and its subcommand before them."""
    found: dict[str, set[str]] = {}
    for document in [*DOCUMENTS, ROOT / "benchmarks" / "NOTES.md"]:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for script, rest in re.findall(r"python benchmarks/(\w+)\.py(?!\w)([^\n`#]*)", text):
            words = shlex.split(rest.partition(")")[0])
            command = script + (f" {words[0]}" if script == "crf_gain" else "")
            found.setdefault(command, set()).update(w for w in words if w.startswith("--"))
    return {command: options for command, options in found.items() if "NAME" not in command}


@pytest.mark.parametrize("command", benchmarks())
def test_a_benchmark_has_the_options_it_is_given(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *subcommand = command.split()
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [script, *subcommand, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"), run_name="__main__")
    known = re.findall(r"(?<!\w)--[\w.-]+", capsys.readouterr().out)
    assert benchmarks()[command] <= set(known)


def test_the_targets_of_make_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for document in DOCUMENTS:
        named = re.findall(
            r"(?:^|&& |`)make ([a-z][\w-]*)", document.read_text(encoding="utf-8"), re.M
        )
        assert set(named) <= targets
