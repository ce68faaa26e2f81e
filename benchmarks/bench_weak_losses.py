"""Losses for weak labels, forward and backward: this package against plain PyTorch.

    python benchmarks/bench_weak_losses.py [--device cuda] [--cases '["gated 240x180 K=21 r=5"]']

The gated CRF loss is compared with "unfold", which lays every window out, K · R² values a pixel, as
published code does, and with "shifts", the reference: one step within the window at a time. The
dense CRF loss (sxy = 80, srgb = 13) has no contender in PyTorch, its sum being over all pairs of
pixels; "lattices reused" leaves out their set-up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from harness import measure, print_table, run_command, sweep, write_results
from torch import Tensor
from torch.nn.functional import unfold

import deepcrf_ext as dc
from deepcrf_ext.data.scenes import render
from deepcrf_ext.ops.gated_crf_loss import KERNELS


@dataclass(frozen=True)
class LossCase:
    """A loss, an image size, a number of labels and, of the gated loss, a radius."""

    loss: str
    width: int
    height: int
    labels: int
    radius: int

    @classmethod
    def parse(cls, name: str) -> LossCase:
        match = re.fullmatch(r"(gated|dense) (\d+)x(\d+) K=(\d+)(?: r=(\d+))?", name)
        if match is None or (match[1] == "gated") != (match[5] is not None):
            raise ValueError(
                f"cases: got {name!r}, must read like 'gated 240x180 K=21 r=5' or "
                "'dense 240x180 K=21'"
            )
        return cls(match[1], *(int(number or 0) for number in match.groups()[1:]))


CASES = (
    "gated 240x180 K=21 r=5",
    "gated 500x375 K=2 r=5",
    "gated 500x375 K=21 r=5",
    "dense 240x180 K=21",
    "dense 500x375 K=21",
)
CONTENDERS = ("deepcrf_ext", "deepcrf_ext, lattices reused", "shifts", "unfold")


def make_problem(case: LossCase, device: torch.device) -> tuple[Tensor, Tensor]:
    """Probabilities [1, K, H, W] that want a gradient, and the image uint8 [1, 3, H, W]."""
    image, _ = render(np.random.default_rng(0), case.height, case.width)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, case.labels, case.height, case.width, generator=generator)
    probabilities = logits.softmax(1).to(device).requires_grad_()
    return probabilities, torch.from_numpy(image).permute(2, 0, 1)[None].to(device)


def gated_unfolded(probabilities: Tensor, image: Tensor, radius: int) -> Tensor:
    """The gated CRF loss with its default kernels, every window laid out."""
    size, pixels = 2 * radius + 1, image[0, 0].numel()

    def windows(values: Tensor) -> Tensor:  # [B, C, R², N]
        laid_out = unfold(values, size, padding=radius)
        return laid_out.view(len(values), values.shape[1], size**2, pixels)

    rows, columns = (torch.arange(float(n), device=image.device) for n in image.shape[2:])
    positions = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    colours = image.float()
    with torch.no_grad():
        affinity = torch.zeros((), device=image.device)
        for weight, sxy, srgb in KERNELS:
            steps = (windows(positions) - positions.flatten(2)[:, :, None]) / sxy
            exponent = steps.square().sum(1)
            if srgb is not None:
                differences = (windows(colours) - colours.flatten(2)[:, :, None]) / srgb
                exponent = exponent + differences.square().sum(1)
            affinity = affinity + weight * (-0.5 * exponent).exp()
        affinity = affinity * windows(torch.ones_like(colours[:, :1]))[:, 0]
        affinity[:, size**2 // 2] = 0
    likeness = (windows(probabilities) * probabilities.flatten(2)[:, :, None]).sum(1)
    return (affinity * (1 - likeness)).sum() / (len(image) * pixels)


def make_call(name: str, case: LossCase, device: torch.device) -> Callable[[], Tensor]:
    """One loss and its gradient by a contender."""
    probabilities, image = make_problem(case, device)
    gated = {
        "deepcrf_ext": dc.gated_crf_loss,
        "shifts": dc.reference.gated_crf_loss,
        "unfold": gated_unfolded,
    }
    reuse = name == "deepcrf_ext, lattices reused"
    lattices = dc.DenseCRFLattices.build(image, dc.DenseCRFParams()) if reuse else None

    def call() -> Tensor:
        if case.loss == "dense":
            loss = dc.dense_crf_loss(probabilities, image, lattices=lattices)
        else:
            loss = gated[name](probabilities, image, case.radius)
        return torch.autograd.grad(loss, probabilities)[0]

    return call


def reason_against(case: str, contender: str) -> str | None:
    """Why a contender has no such loss."""
    if case.startswith("dense") and contender in ("shifts", "unfold"):
        return "all pairs"
    if case.startswith("gated") and contender == "deepcrf_ext, lattices reused":
        return "no lattice"
    return None


def needed_bytes(case: str, contender: str) -> float:
    """An estimate, of "unfold" and "shifts" alone."""
    problem = LossCase.parse(case)
    pixels = problem.width * problem.height * (2 * problem.radius + 1) ** 2
    values = {"unfold": 4 * problem.labels, "shifts": 3}
    return 4.0 * pixels * values.get(contender, 0)


def main(
    device: str = "cpu",
    cases: Sequence[str] = CASES,
    contenders: Sequence[str] = CONTENDERS,
    seconds: float = 1.0,
    worker: bool = False,
) -> None:
    """Measures, prints a table and writes the record `weak_losses`.

    Args:
        device: cpu or cuda.
        cases: "gated WIDTHxHEIGHT K=labels r=radius" or "dense WIDTHxHEIGHT K=labels".
        contenders: which of "deepcrf_ext", "deepcrf_ext, lattices reused", "shifts" and "unfold".
        seconds: time to repeat each measurement for.
        worker: measure the one case and contender in this process.
    """
    where = torch.device(device)
    if worker:
        call = make_call(contenders[0], LossCase.parse(cases[0]), where)
        print(json.dumps(measure(call, where, seconds)))
        return
    measurements = sweep(
        __file__, device, cases, contenders, seconds, needed_bytes, reason_against=reason_against
    )
    print_table("losses for weak labels, forward and backward", measurements, "unfold")
    print(write_results("weak_losses", where, measurements))


if __name__ == "__main__":
    run_command(main)
