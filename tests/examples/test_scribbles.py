"""The example that trains from scribbles: the losses for weak labels help."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from matplotlib.image import imread

EXAMPLE = Path(__file__).parents[2] / "examples" / "scribbles.py"


@pytest.mark.usefixtures("one_thread")
def test_both_losses_beat_the_labels_alone(tmp_path: Path) -> None:
    picture = tmp_path / "scribbles.png"
    scores = runpy.run_path(str(EXAMPLE))["main"](picture)
    assert scores["gated"] > scores["dots alone"] + 0.07
    assert scores["dense"] > scores["dots alone"] + 0.07
    assert min(imread(picture).shape[:2]) > 300
