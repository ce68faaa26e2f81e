"""The examples run as a user runs them, say what they should, and draw a picture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from PIL import Image

from deepcrf_ext.data.scenes import Scenes

EXAMPLES = Path(__file__).parents[2] / "examples"

# A torchvision for GPUs does not import beside a torch without: what it looks for is declared.
RUN = """
import runpy, sys, torch
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints; it must draw a picture into `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (picture,) = folder.glob("*.png")
    assert min(imread(picture).shape[:2]) > 150
    return done.stdout


def shares(printed: str) -> list[float]:
    """The percentages in what an example printed."""
    return [float(number) for number in re.findall(r"([\d.]+)%", printed)]


def test_superpixels(tmp_path: Path) -> None:
    unary, crf = shares(run("superpixels.py", tmp_path))
    assert crf > 95 > unary + 20


def test_volume(tmp_path: Path) -> None:
    alone, crf = shares(run("volume.py", tmp_path))
    assert crf > 97 > alone + 10


def test_pydensecrf_script(tmp_path: Path) -> None:
    noisy, crf = shares(run("pydensecrf_script.py", tmp_path))
    assert crf > 95 > noisy + 20


def test_torchvision_network(tmp_path: Path) -> None:
    """A step of each kind; what it learns takes minutes."""
    scenes = Scenes("train")
    for index in range(4):
        sample = scenes[index]
        for kind, array in (("images", sample.image), ("masks", sample.labels.astype(np.uint8))):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "data" / kind / f"{index}.png")
    folders = [str(tmp_path / "data" / kind) for kind in ("images", "masks")]
    printed = run("torchvision_network.py", tmp_path, *folders, "3")
    assert printed.count("epoch") == 3
    for name in ("network", "with PairwiseCRF", "with DenseCRF on top"):
        assert 0 <= float(re.search(f"^{name}: mean IoU (.+) %$", printed, re.M)[1]) <= 100


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 85, path.name
