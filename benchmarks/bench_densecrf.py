"""Dense CRF, set-up included: this package against pydensecrf (pip install pydensecrf2).

    python benchmarks/bench_densecrf.py [--device cuda] [--cases '["480x360 K=11 n=10"]']
        [--image photo.jpg]

On CUDA this package begins with energies and an image on the device and ends with marginals there,
timed by device events; pydensecrf runs on the CPU. "lattices reused" leaves out the set-up: the
lattices of the image are built before.

Besides time and memory it reports agreement: the share of pixels with the same label as
pydensecrf's and the largest difference of marginals, on every case; and the mean error of both
against the exact sums over all pairs of pixels, on a small image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from harness import measure, print_table, run_command, sweep, write_results
from numpy.typing import NDArray
from torch import Tensor

import deepcrf_ext as dc
from deepcrf_ext.data import read_image
from deepcrf_ext.data.scenes import render

PARAMS = dc.DenseCRFParams()
CPU = torch.device("cpu")
SMALL = (80, 60)


@dataclass(frozen=True)
class DenseCase:
    """An image size, a number of labels and of iterations."""

    width: int
    height: int
    labels: int
    iterations: int

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height} K={self.labels} n={self.iterations}"

    @classmethod
    def parse(cls, name: str) -> DenseCase:
        match = re.fullmatch(r"(\d+)x(\d+) K=(\d+) n=(\d+)", name)
        if match is None:
            raise ValueError(f"cases: got {name!r}, must read like '480x360 K=11 n=10'")
        return cls(*map(int, match.groups()))


CASES = (
    DenseCase(480, 360, 11, 10),
    DenseCase(500, 375, 21, 10),
    DenseCase(500, 375, 2, 10),
    DenseCase(500, 375, 150, 5),
)


def make_problem(case: DenseCase, path: Path | None) -> tuple[NDArray[np.uint8], Tensor]:
    """An image [H, W, 3], and energies [K, H, W] as coarse and noisy as a network's."""
    if path is None:
        image, _ = render(np.random.default_rng(0), case.height, case.width)
    else:
        size = (case.width, case.height)
        image = cv2.resize(read_image(path), size, interpolation=cv2.INTER_AREA)
    generator = torch.Generator().manual_seed(0)
    coarse = (1, case.labels, case.height // 8 + 2, case.width // 8 + 2)
    logits = torch.nn.functional.interpolate(
        3 * torch.randn(coarse, generator=generator),
        size=(case.height, case.width),
        mode="bilinear",
    )[0]
    logits += torch.randn(logits.shape, generator=generator)
    return image, dc.unary_from_probabilities(logits.softmax(0))


def prepare(
    image: NDArray[np.uint8],
    unary: Tensor,
    iterations: int,
    params: dc.DenseCRFParams = PARAMS,
    device: torch.device = CPU,
    reuse: bool = False,
) -> Callable[[], Tensor]:
    """This package's dense CRF of a problem that lies on a device; `reuse`: its lattices too."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
    energies = unary[None].to(device)
    lattices = dc.DenseCRFLattices.build(planes, params) if reuse else None
    return lambda: dc.dense_crf(energies, planes, params, iterations, lattices)[0]


def ours(
    image: NDArray[np.uint8],
    unary: Tensor,
    iterations: int,
    params: dc.DenseCRFParams = PARAMS,
    device: torch.device = CPU,
) -> NDArray[np.float32]:
    return prepare(image, unary, iterations, params, device)().cpu().numpy()


def pydensecrf(
    image: NDArray[np.uint8], unary: Tensor, iterations: int, params: dc.DenseCRFParams = PARAMS
) -> NDArray[np.float32]:
    from pydensecrf.densecrf import DenseCRF2D

    labels, height, width = unary.shape
    crf = DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(unary.flatten(1).numpy())
    crf.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=params.bilateral_sxy,
        srgb=params.bilateral_srgb,
        rgbim=image,
        compat=params.bilateral_weight,
    )
    return np.array(crf.inference(iterations)).reshape(unary.shape)


CONTENDERS = ("deepcrf_ext", "deepcrf_ext, lattices reused", "pydensecrf2")
INSTALLED = CONTENDERS if find_spec("pydensecrf") else CONTENDERS[:2]


def measure_contender(
    name: str,
    image: NDArray[np.uint8],
    unary: Tensor,
    iterations: int,
    where: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """What `harness.measure` says of one contender."""
    if name == "pydensecrf2":
        return measure(lambda: pydensecrf(image, unary, iterations), CPU, seconds)
    reuse = name == "deepcrf_ext, lattices reused"
    return measure(prepare(image, unary, iterations, PARAMS, where, reuse), where, seconds)


def agreement(case: DenseCase, path: Path | None, where: torch.device) -> dict[str, float]:
    """How well this package and pydensecrf agree with each other."""
    image, unary = make_problem(case, path)
    a = ours(image, unary, case.iterations, PARAMS, where)
    b = pydensecrf(image, unary, case.iterations)
    return {
        "same_label": float((a.argmax(0) == b.argmax(0)).mean()),
        "largest_difference": float(np.abs(a - b).max()),
    }


def errors(path: Path | None, where: torch.device) -> dict[str, dict[str, float]]:
    """Both packages against the exact dense CRF, in float64, on a small image."""
    image, unary = make_problem(DenseCase(*SMALL, 11, 10), path)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    exact = dc.reference.dense_crf(unary.double()[None], planes, PARAMS, 10, exact=True)[0].numpy()
    results = {
        "deepcrf_ext": ours(image, unary, 10, PARAMS, where),
        "pydensecrf2": pydensecrf(image, unary, 10),
    }
    return {
        name: {
            "mean_error": float(np.abs(result - exact).mean()),
            "same_label": float((result.argmax(0) == exact.argmax(0)).mean()),
        }
        for name, result in results.items()
    }


def main(
    device: str = "cpu",
    cases: Sequence[str] = tuple(case.name for case in CASES),
    contenders: Sequence[str] = INSTALLED,
    seconds: float = 2.0,
    image: Path | None = None,
    worker: bool = False,
) -> None:
    """Measures, prints a table and writes the record `densecrf`.

    Args:
        device: cpu or cuda.
        cases: sizes, as "WIDTHxHEIGHT K=labels n=iterations".
        contenders: which of "deepcrf_ext", "deepcrf_ext, lattices reused" and "pydensecrf2", the
            last by default only where it is installed.
        seconds: time to repeat each measurement for.
        image: a picture to use instead of a rendered scene.
        worker: measure the one case and contender in this process.
    """
    where = torch.device(device)
    if worker:
        case = DenseCase.parse(cases[0])
        problem = (*make_problem(case, image), case.iterations)
        print(json.dumps(measure_contender(contenders[0], *problem, where, seconds)))
        return
    options = [] if image is None else [f"--image={image}"]
    measurements = sweep(__file__, device, cases, contenders, seconds, options=options)
    print_table(
        "dense CRF, set-up included unless lattices are reused", measurements, "pydensecrf2"
    )
    facts: dict[str, Any] = {}
    if {"deepcrf_ext", "pydensecrf2"} <= set(contenders):
        facts["agreement"] = {
            name: agreement(DenseCase.parse(name), image, where) for name in cases
        }
        facts["exact"] = errors(image, where)
        print(json.dumps(facts, indent=1))
    print(write_results("densecrf", where, measurements, image=str(image), **facts))


if __name__ == "__main__":
    run_command(main)
