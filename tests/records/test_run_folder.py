"""The log of a run."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deepcrf_ext.config import TrainConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.records.run_folder import MetricsLog, create_run_folder, record_start


def test_a_new_run_takes_an_empty_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = TrainConfig(output=folder)
    assert create_run_folder(config) == folder
    with pytest.raises(InputError, match="exists already; choose another folder$"):
        create_run_folder(config)
    (folder / "last.pt").touch()
    with pytest.raises(InputError, match=f"another folder or use --resume {folder}$"):
        create_run_folder(config)
    with pytest.raises(InputError, match="config.yaml exists already; choose another folder$"):
        create_run_folder(TrainConfig(output=folder / "config.yaml"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_null(tmp_path: Path, value: float) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write("val", 3, {"nll": {"full": value, "unary": 0.5}, "lr": value})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "kind": "val",
        "step": 3,
        "nll": {"full": None, "unary": 0.5},
        "lr": None,
    }


@pytest.mark.parametrize("torn", [b'{"kind": "tr', b'\0\0\0\xff\xfe{"a'])
def test_goes_on_after_a_step_and_a_torn_line(tmp_path: Path, torn: bytes) -> None:
    lines = [json.dumps({"kind": "train", "step": step}) + "\n" for step in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_bytes("".join(lines).encode() + torn)
    log = MetricsLog(tmp_path, 2)
    log.write("train", 3, {"lr": 0.5})
    log.close()
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("lr")) for line in steps] == [(1, None), (2, None), (3, 0.5)]


def test_a_full_disk_leaves_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n')

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        MetricsLog(tmp_path, 1)
    assert path.read_text() == '{"kind": "train", "step": 1}\n'


def test_tensorboard_goes_on_after_a_step(tmp_path: Path) -> None:
    """Numbers by kind and name, and one level down; what came after the step is gone."""
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = MetricsLog(tmp_path, start)
        for step in steps:
            values = {"loss": float(step + start), "iou": {"unary": 0.5, "name": "text"}}
            log.write("step", step, values)
        log.close()
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert board.Tags()["scalars"] == ["step/loss", "step/iou/unary"]
    assert [(event.step, event.value) for event in board.Scalars("step/loss")] == [
        (1, 1),
        (2, 2),
        (3, 5),
        (4, 6),
    ]


def test_every_start_is_recorded(tmp_path: Path) -> None:
    record_start(tmp_path, 0)
    record_start(tmp_path, 5, merged=["a", "b"])
    first, second = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert (first["step"], second["step"], second["merged"]) == (0, 5, ["a", "b"])
    assert "merged" not in first
    for start in (first, second):
        assert start["command"].startswith("python ")
        assert "torch" in start["environment"]
