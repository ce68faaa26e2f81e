"""The gated CRF loss among PyTorch's: half precision, autocast, compilation, and its arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from accuracy import assert_close
from image_loss_problems import assert_compiles_once, segmentation, value_and_gradient
from registered import opcheck
from targets import Target

from deepcrf_ext import gated_crf_loss, reference
from deepcrf_ext.ops.gated_crf_loss import KERNELS, gated_crf_loss_total


def test_half_precision_sums_in_float32(operator_target: Target) -> None:
    """More than float16 can count: the sum over all pixels is never rounded to it."""
    probabilities = torch.full((1, 2, 90, 100), 0.5, dtype=torch.float16)
    image = torch.zeros(1, 1, 90, 100)
    probabilities, image = (
        probabilities.to(operator_target.device),
        image.to(operator_target.device),
    )
    result = value_and_gradient(gated_crf_loss, probabilities, image, 2)
    exact = gated_crf_loss(probabilities.double(), image, 2)
    assert result["value"].dtype == torch.float16
    assert_close(result["value"], exact.half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_computes_losses_in_float32(operator_target: Target, dtype: torch.dtype) -> None:
    probabilities, image, _ = segmentation(1, 4, 3, (5, 6))
    probabilities, image = (
        probabilities.to(operator_target.device, dtype),
        image.to(operator_target.device),
    )
    with torch.autocast(operator_target.device.type, torch.bfloat16):
        value = gated_crf_loss(probabilities, image)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    exact = reference.gated_crf_loss(probabilities.cpu().double(), image.cpu())
    assert_close(value.cpu(), exact.to(value.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("axes", [(5, 6), (4,), (2, 3, 4)])
@pytest.mark.parametrize("differentiate", [True, False])
def test_registered_operator_passes_opcheck(
    operator_target: Target, dtype: torch.dtype, axes: tuple[int, ...], differentiate: bool
) -> None:
    problem = segmentation(2, 3, 3, axes, "bool")
    probabilities, image, mask = (tensor.to(operator_target.device) for tensor in problem)
    for weights in (mask, None):
        leaf = probabilities.to(dtype).requires_grad_(differentiate)
        args = (leaf, image, weights, 2, [0.9, 0.1, 0.01, 0.1, 0.1, 0.0], differentiate)
        opcheck(gated_crf_loss_total, args)


def test_compiles_whole_for_any_size(operator_target: Target) -> None:
    axes = [(5, 6), (7, 9), (8, 4)]
    problems = [segmentation(2 + i, 3, 3, size, "bool") for i, size in enumerate(axes)]
    # A set stance keeps the loss from being compiled; "default" lets it be.
    with torch.compiler.set_stance("default"):
        assert_compiles_once(
            gated_crf_loss, [tuple(t.to(operator_target.device) for t in each) for each in problems]
        )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"probabilities": [0.5]}, TypeError, "probabilities: got list"),
        ({"probabilities": torch.ones(1, 2, 4, 5).long()}, TypeError, "probabilities: got dtype"),
        ({"probabilities": torch.ones(1, 2)}, ValueError, r"probabilities: got shape \[1, 2\]"),
        ({"probabilities": torch.ones(1, 0, 4, 5)}, ValueError, "probabilities: got shape"),
        ({"image": torch.ones(1, 3, 4, 6)}, ValueError, "image: got shape"),
        ({"image": torch.ones(1, 3, 4)}, ValueError, "image: got shape"),
        ({"image": torch.ones(1, 3, 4, 5).cfloat()}, TypeError, "image: got dtype"),
        ({"radius": -1}, ValueError, "radius: got -1"),
        ({"radius": 2.5}, TypeError, "radius: got float"),
        ({"radius": True}, TypeError, "radius: got bool"),
        ({"kernels": 3}, TypeError, "kernels: got int"),
        ({"kernels": [(1.0, 6.0)]}, ValueError, r"kernels\[0\]: got \(1.0, 6.0\)"),
        ({"kernels": [KERNELS[0], 2]}, ValueError, r"kernels\[1\]: got 2"),
        ({"kernels": [(1.0, 0.0, None)]}, ValueError, r"kernels\[0\] sxy: got 0.0"),
        ({"kernels": [(1.0, 1.0, -2.0)]}, ValueError, r"kernels\[0\] srgb: got -2.0"),
        ({"kernels": [("a", 1.0, None)]}, TypeError, r"kernels\[0\] weight: got str"),
        ({"kernels": [(math.nan, 1.0, None)]}, ValueError, r"kernels\[0\] weight: got nan"),
        ({"kernels": [KERNELS[0]] * 17}, ValueError, "kernels: got 17"),
        ({"mask": [1]}, TypeError, "mask: got list"),
        ({"mask": torch.ones(1, 4, 6)}, ValueError, "mask: got shape"),
        ({"mask": torch.ones(1, 2, 4, 5)}, ValueError, "mask: got shape"),
        ({"mask": torch.ones(1, 4, 5).cfloat()}, TypeError, "mask: got dtype"),
    ],
)
def test_errors_name_the_argument(
    host_target: Target, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"probabilities": torch.ones(1, 2, 4, 5), "image": torch.ones(1, 3, 4, 5)}
    with pytest.raises(error, match=message):
        host_target.functions.gated_crf_loss(**{**arguments, **changes})
