"""For tests of the refine command: images, their true labels, and label maps with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.refine import main

H, W, K = 40, 52, 3
SIZES = {"a": (H, W), "b": (H, W), "sub/c": (30, 44)}
CRF = ["--dense-crf-params", "{bilateral_sxy: 20, bilateral_weight: 4}"]


def regions(height: int, width: int) -> np.ndarray:
    """True labels: three upright stripes."""
    return np.repeat((np.arange(width) * K // width)[None], height, 0).astype(np.uint8)


def write_folders(root: Path) -> Path:
    """images, truth, and labels that are wrong in one pixel of six."""
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        truth = regions(height, width)
        colours = np.array([(200, 60, 40), (40, 180, 60), (50, 70, 210)], np.uint8)
        image = colours[truth] + rng.integers(0, 12, (height, width, 3), dtype=np.uint8)
        noisy = np.where(rng.random(truth.shape) < 1 / 6, rng.integers(0, K, truth.shape), truth)
        for folder, array in (("images", image), ("truth", truth), ("labels", noisy)):
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(array.astype(np.uint8))
            if folder == "labels":
                picture.putpalette(voc_palette(256).tobytes())
            picture.save(path)
    return root


def run(folders: Path, masks: str, *options: str) -> int:
    """The command over the images and a folder of masks; its exit code."""
    inputs = [str(folders / "images"), str(folders / masks)]
    return main([*inputs, "--output", str(folders / "out"), *options, "--device", "cpu"])


def labels(path: Path) -> np.ndarray:
    """The label map of a file."""
    return np.array(Image.open(path))
