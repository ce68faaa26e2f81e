"""What the documents show works: Python code runs, and commands have the options they are given."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import deepcrf_ext as dc
from deepcrf_ext.cli import parsing

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in a language; "" is the shell."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.M | re.S)
    return [block for kind, block in found if kind == language]


def commands() -> Iterator[tuple[str, list[str]]]:
    """The module of the package and the arguments of every command that the documents show."""
    for document in DOCUMENTS:
        for block in blocks(document, ""):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
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
