"""The training command on a run folder that has a checkpoint already."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import training_options, write_learnable_camvid, write_run

from deepcrf_ext import train as command
from deepcrf_ext.config import from_dict
from deepcrf_ext.errors import InputError
from deepcrf_ext.records.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_that_fails_at_once_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    write_learnable_camvid(data, train=2, val=1)

    def fails_with(error: BaseException) -> None:
        def step(*_: object) -> None:
            raise error

        monkeypatch.setattr(command.Trainer, "step", step)

    fails_with(KeyboardInterrupt())
    assert command.main(training_options(tmp_path, data, run)) == 130
    assert load_checkpoint(run / "last.pt")["step"] == 0
    fails_with(InputError("0.png: cannot be read"))
    assert command.main(["--resume", str(run)]) == 2
    assert capsys.readouterr().err.endswith("error: 0.png: cannot be read\n")
    only = (run / "last.pt").rename(run / "best.pt")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(command.Trainer, "save", full)
    assert command.main(["--resume", str(only)]) == 2
    assert load_checkpoint(only)["step"] == 0


def test_what_a_resumed_run_takes(tmp_path: Path) -> None:
    """The settings of its checkpoint, but for where it is now and for what is given."""
    run = write_run(tmp_path / "run", tmp_path / "data")
    saved = from_dict(load_checkpoint(run / "last.pt")["config"])
    plain, checkpoint = command.parse_resume(["--resume", str(run)])
    assert (plain, checkpoint) == (replace(saved, output=run), run / "last.pt")
    options = ["--epochs", "9", "--device", "cuda:3", "--data.root", "x", "--data.workers", "0"]
    config, _ = command.parse_resume(["--resume", str(run), *options])
    data = replace(saved.data, root=Path("x"), workers=0)
    assert config == replace(saved, output=run, epochs=9, device="cuda:3", data=data)


def test_rendered_scenes_are_those_of_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Stopped(command.Trainer):
        def __init__(self, config: object, train_set: object, *rest: object, **_: object) -> None:
            seen.append(train_set[0].image.tobytes())
            raise InputError("enough")

    monkeypatch.setattr(command, "Trainer", Stopped)
    for seed in ("1", "1", "2"):
        assert command.main(["--seed", seed, "--output", str(tmp_path / "run")]) == 2
    assert seen[0] == seen[1] != seen[2]
