"""The log of a training in a file: plain lines, no carriage returns."""

from __future__ import annotations

import io

import pytest

from deepcrf_ext.training import step_log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_plain_line_now_and_then(monkeypatch, capsys: pytest.CaptureFixture[str]):
    now = 0.0
    monkeypatch.setattr(step_log.time, "monotonic", lambda: now)
    with step_log.StepLog(total=10, done=2, images=8) as log:
        log.describe("epoch 2/3")
        for step in range(6):
            if step == 3:  # validation takes as long as ten steps, and counts in what is left alone
                with log.aside("validating"):
                    now += 20
                log.write("epoch 2: done")
                log.describe("epoch 3/3")
            now += 2 if step < 3 else 4
            log.step({"unary": 1 / (step + 1), "above_below": 2.0}, lr=0.05)
    out, error = capsys.readouterr()
    assert "\r" not in out + error
    assert out == "epoch 2: done\n"
    assert error.splitlines() == [
        "epoch 2/3, step 3/10: loss unary 1.000, above_below 2.000; lr 0.05; 4 images/s; "
        "0:00:14 left",
        # (2 + 2 + 4) / 3 seconds a step, and 20 seconds aside for 4 steps
        "epoch 3/3, step 6/10: loss unary 0.250, above_below 2.000; lr 0.05; 3 images/s; "
        "0:00:31 left",
        "epoch 3/3, step 8/10: loss unary 0.167, above_below 2.000; lr 0.05; 2 images/s; "
        "0:00:15 left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with step_log.StepLog(total=2, done=0, images=8) as log:
        log.step({"unary": 1.0}, lr=0.05)
    assert "1/2" in screen.getvalue()
    assert "images/s" not in screen.getvalue()


def test_quiet_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with step_log.StepLog(total=2, done=0, images=8, quiet=True) as log:
        log.step({"unary": 1.0}, lr=0.05)
        log.write("line")
    assert capsys.readouterr() == ("", "")
