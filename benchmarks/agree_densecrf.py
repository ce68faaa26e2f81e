"""Agreement of the dense CRF with pydensecrf (pip install pydensecrf2), and the error of both.

    python benchmarks/agree_densecrf.py PHOTOS [--count 3]

Every preset, 1 to 10 iterations and several numbers of labels, on photographs at their own size,
with energies as coarse and noisy as a network's. The error is against the exact sums over all pairs
of pixels, on the photographs shrunk to a width of 80.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_densecrf import DenseCase, make_problem, ours, pydensecrf
from harness import run_command, write_results
from tqdm import tqdm

import deepcrf_ext as dc
from deepcrf_ext.data import read_image
from deepcrf_ext.evaluation.predicted_folder import find_images
from deepcrf_ext.ops.dense_crf_params import PRESETS

CONTENDERS = {"deepcrf_ext": ours, "pydensecrf2": pydensecrf}
SMALL_WIDTH = 80


def agreement(
    paths: Sequence[Path], labels: int, iterations: Sequence[int], params: dc.DenseCRFParams
) -> dict[str, float]:
    """The worst agreement over images and numbers of iterations: the smallest share of pixels with
    the same label, and the largest difference of marginals."""
    same, difference = 1.0, 0.0
    for path in paths:
        height, width = read_image(path).shape[:2]
        image, unary = make_problem(DenseCase(width, height, labels, 0), path)
        for count in tqdm(iterations, f"K={labels} {path.name}", leave=False):
            a, b = (call(image, unary, count, params) for call in CONTENDERS.values())
            same = min(same, float((a.argmax(0) == b.argmax(0)).mean()))
            difference = max(difference, float(np.abs(a - b).max()))
    return {"same_label": same, "largest_difference": difference}


def errors(
    paths: Sequence[Path], labels: int, iterations: int, params: dc.DenseCRFParams
) -> dict[str, dict[str, float]]:
    """Every contender against the exact dense CRF in float64: means over small images."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for path in paths:
        height, width = read_image(path).shape[:2]
        case = DenseCase(SMALL_WIDTH, round(SMALL_WIDTH * height / width), labels, iterations)
        image, unary = make_problem(case, path)
        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        exact = dc.reference.dense_crf(unary.double()[None], planes, params, iterations, exact=True)
        wanted = exact[0].numpy()
        for name, call in CONTENDERS.items():
            result = call(image, unary, iterations, params)
            same = (result.argmax(0) == wanted.argmax(0)).mean()
            found[name].append((float(np.abs(result - wanted).mean()), float(same)))
    return {
        name: dict(zip(("mean_error", "same_label"), np.mean(values, 0).tolist(), strict=True))
        for name, values in found.items()
    }


def main(
    photos: Path,
    count: int = 3,
    labels: Sequence[int] = (2, 11, 21, 150),
    iterations: Sequence[int] = tuple(range(1, 11)),
) -> None:
    """Prints a table and writes the record `densecrf-agreement`.

    Args:
        photos: a folder of photographs.
        count: how many of them, spread evenly.
        labels: numbers of labels.
        iterations: numbers of iterations.
    """
    files = list(find_images([photos]))
    images = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]
    facts: list[dict[str, Any]] = []
    presets = {params: name for name, params in reversed(PRESETS.items())}  # equal ones once
    print(
        f"{'preset':12} {'K':>4} {'same label':>11} {'largest difference':>19} {'mean errors':>23}"
    )
    for params, preset in sorted(presets.items(), key=lambda item: item[1]):
        for num_labels in labels:
            fact = {
                "preset": preset,
                "labels": num_labels,
                **agreement(images, num_labels, iterations, params),
                "exact": errors(images, num_labels, max(iterations), params),
            }
            facts.append(fact)
            mean = " ".join(f"{value['mean_error']:11.2e}" for value in fact["exact"].values())
            print(
                f"{preset:12} {num_labels:4} {100 * fact['same_label']:10.3f}% "
                f"{fact['largest_difference']:19.1e} {mean}",
                flush=True,
            )
    names = [path.name for path in images]
    extra = {"images": names, "iterations": list(iterations), "agreement": facts}
    print(write_results("densecrf-agreement", torch.device("cpu"), [], **extra))


if __name__ == "__main__":
    run_command(main)
