"""Work in steps that are done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcrf_ext.errors import InputError
from deepcrf_ext.records.steps import Steps


def test_a_step_is_done_once_and_says_how(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "steps"
    done: list[str] = []

    def work() -> dict[str, Any]:
        done.append("once")
        return {"score": 0.5, "table": (1, 2)}

    first = Steps(folder, "python -m program").run("train", work)
    assert first["result"] == {"score": 0.5, "table": [1, 2]}, "as the file has it"
    assert (first["step"], first["command"]) == ("train", "python -m program")
    assert 0 <= first["seconds"] < 60
    assert first["environment"]["torch"].startswith(torch.__version__)
    assert first["date"].endswith("+00:00")
    assert json.loads((folder / "train.json").read_text()) == first
    assert Steps(folder, "another command").run("train", work) == first
    assert done == ["once"]


def test_a_step_that_fails_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Steps(tmp_path, "").run("train", lambda: {"score": 1 / 0})
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "train.json: not JSON "), ("[3]", "train.json: not a JSON object; delete it to have")],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Steps(tmp_path, "").run("train", dict)


def test_steps_are_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    Steps(tmp_path, "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE: .* without torchrun"):
        Steps(tmp_path, "")
