"""How far some work is, on stderr."""

from __future__ import annotations

import pytest

from deepcrf_ext import progress


def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    assert list(progress.progress(iter("ab"), 2, "refine", "image")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == [
        "refine: 1 of 2 images, 0 s left",
        "refine: 2 of 2 images, 0 s left",
    ]
