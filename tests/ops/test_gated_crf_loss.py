"""The gated CRF loss (Obukhov et al. 2019)."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from accuracy import assert_accurate, assert_close
from hypothesis import given
from hypothesis import strategies as st
from image_loss_problems import segmentation, value_and_gradient
from targets import Target
from threads import torch_threads
from torch import Tensor

from deepcrf_ext import gated_crf_loss, reference
from deepcrf_ext.ops import _image_checks
from deepcrf_ext.ops.gated_crf_loss import KERNELS, GatedKernel

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def check_against_reference(
    target: Target,
    problem: tuple[Tensor, Tensor, Tensor | None],
    dtype: torch.dtype,
    radius: int,
    kernels: Sequence[GatedKernel] = KERNELS,
) -> None:
    probabilities, image, mask = problem
    probabilities = probabilities.to(dtype)
    on_target = [
        tensor if tensor is None else tensor.to(target.device)
        for tensor in (probabilities, image, mask)
    ]
    result = value_and_gradient(gated_crf_loss, *on_target[:2], radius, kernels, on_target[2])
    assert_accurate(
        result,
        value_and_gradient(reference.gated_crf_loss, probabilities, image, radius, kernels, mask),
        value_and_gradient(
            reference.gated_crf_loss, probabilities.double(), image, radius, kernels, mask
        ),
    )
    # Without a gradient every pair is looked at once: the same sum, in another order.
    alone = gated_crf_loss(*on_target[:2], radius, kernels, on_target[2])
    assert_close(alone, result["value"])


def brute_force(
    probabilities: Tensor,
    image: Tensor,
    radius: int,
    kernels: Sequence[GatedKernel],
    mask: Tensor | None,
) -> float:
    """The definition, pixel by pixel."""
    batch = probabilities.shape[0]
    pixels = list(itertools.product(*(range(size) for size in probabilities.shape[2:])))
    total, count = 0.0, 0.0
    for b, p in itertools.product(range(batch), pixels):
        own = 1.0 if mask is None else float(mask[(b, *p)])
        count += own
        for q in pixels:
            step = [j - i for i, j in zip(p, q, strict=True)]
            if p == q or max(map(abs, step)) > radius:
                continue
            position = sum(axis**2 for axis in step)
            difference = image[(b, slice(None), *p)].double() - image[(b, slice(None), *q)].double()
            colour = float(difference.square().sum())
            affinity = sum(
                weight
                * math.exp(
                    -position / (2 * sxy**2) - (0 if srgb is None else colour / (2 * srgb**2))
                )
                for weight, sxy, srgb in kernels
            )
            ends = probabilities[(b, slice(None), *p)], probabilities[(b, slice(None), *q)]
            total += own * affinity * (1 - float(ends[0] @ ends[1]))
    return total / count if count else 0.0


@pytest.mark.parametrize("masked", ["none", "bool", "weights", "nothing"])
@pytest.mark.parametrize(
    ("axes", "radius"), [((5, 6), 2), ((1, 1), 3), ((3, 4), 9), ((7,), 2), ((3, 2, 4), 1)]
)
def test_definition(target: Target, axes: tuple[int, ...], radius: int, masked: str) -> None:
    probabilities, image, mask = segmentation(2, 3, 2, axes, masked)
    kernels = ((0.7, 2.0, 20.0), (0.2, 3.0, None), (-0.1, 1.5, 8.0))
    wanted = brute_force(probabilities, image, radius, kernels, mask)
    args = [t if t is None else t.to(target.device) for t in (probabilities, image, mask)]
    value = target.functions.gated_crf_loss(*args[:2], radius, kernels, args[2])
    assert float(value) == pytest.approx(wanted, rel=1e-12, abs=1e-12)


# Labels around the sizes of blocks, rows around the widths of vectors, windows beyond the image.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "num_labels", "channels", "axes", "radius", "masked"),
    [
        (1, 1, 3, (1, 1), 5, "none"),
        (2, 2, 3, (4, 17), 5, "bool"),
        (1, 5, 1, (3, 33), 40, "weights"),
        (1, 8, 3, (9, 16), 2, "none"),
        (2, 9, 4, (6, 15), 1, "bool"),
        (1, 21, 3, (7, 18), 3, "weights"),
        (3, 4, 2, (37,), 6, "bool"),
        (1, 3, 1, (4, 5, 6), 2, "weights"),
    ],
)
def test_accuracy(
    operator_target: Target,
    batch: int,
    num_labels: int,
    channels: int,
    axes: tuple[int, ...],
    radius: int,
    masked: str,
    dtype: torch.dtype,
) -> None:
    problem = segmentation(batch, num_labels, channels, axes, masked)
    check_against_reference(operator_target, problem, dtype, radius)


@given(
    batch=st.integers(1, 2),
    num_labels=st.integers(1, 18),
    channels=st.integers(1, 4),
    axes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    radius=st.integers(0, 8),
    masked=st.sampled_from(["none", "bool", "weights", "nothing"]),
    dtype=st.sampled_from(DTYPES),
    kernels=st.lists(
        st.tuples(
            st.floats(-1, 1),
            st.floats(0.3, 20),
            st.one_of(st.none(), st.sampled_from([1e-30, 0.1, 10.0, 1e30])),
        ),
        max_size=3,
    ),
)
def test_ragged_problems(
    operator_target: Target,
    batch: int,
    num_labels: int,
    channels: int,
    axes: list[int],
    radius: int,
    masked: str,
    dtype: torch.dtype,
    kernels: list[GatedKernel],
) -> None:
    problem = segmentation(batch, num_labels, channels, axes, masked)
    check_against_reference(operator_target, problem, dtype, radius, kernels)


@pytest.mark.parametrize("masked", ["none", "weights", "nothing"])
def test_gradient_is_that_of_finite_differences(target: Target, masked: str) -> None:
    probabilities, image, mask = segmentation(2, 3, 2, (3, 4), masked)
    leaf = probabilities.to(target.device).requires_grad_()
    image = image.to(target.device)
    mask = mask if mask is None else mask.to(target.device)
    assert torch.autograd.gradcheck(
        lambda values: target.functions.gated_crf_loss(values, image, 2, mask=mask), leaf
    )


@pytest.mark.parametrize("masked", ["none", "weights"])
def test_second_derivatives(operator_target: Target, masked: str) -> None:
    """Through a softmax, and of a power of the loss, those of the reference."""
    probabilities, image, mask = segmentation(2, 3, 3, (4, 5), masked)

    def products(function: Any, device: torch.device) -> list[Tensor]:
        """The first two derivatives in some direction, and the gradient of their sum."""
        logits = probabilities.log().to(device).requires_grad_()
        own = [tensor if tensor is None else tensor.to(device) for tensor in (image, mask)]
        loss = function(logits.softmax(1), own[0], 2, mask=own[1]) ** 2
        direction = torch.arange(logits.numel(), device=device).view(logits.shape) % 7 - 3.0
        results = []
        for _ in range(3):
            (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
            results.append(gradient.detach().cpu())
            loss = loss + (gradient * direction).sum()
        return results

    wanted = products(reference.gated_crf_loss, torch.device("cpu"))
    result = products(gated_crf_loss, operator_target.device)
    for own, right in zip(result, wanted, strict=True):
        assert_close(own, right)


@pytest.mark.parametrize("changed", ["image", "mask"])
def test_second_derivatives_are_of_what_was_there(changed: str) -> None:
    probabilities, image, mask = segmentation(1, 3, 3, (4, 5), "weights")
    assert mask is not None
    leaf = probabilities.requires_grad_()
    loss = gated_crf_loss(leaf, image, 2, mask=mask)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    {"image": image, "mask": mask}[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient.square().sum().backward()


def test_uniform_one_hot_costs_nothing(target: Target) -> None:
    _, image, _ = segmentation(1, 3, 3, (9, 20))
    probabilities = torch.zeros(1, 3, 9, 20)
    probabilities[:, 1] = 1
    probabilities, image = probabilities.to(target.device), image.to(target.device)
    result = value_and_gradient(target.functions.gated_crf_loss, probabilities, image)
    assert float(result["value"]) == 0


@pytest.mark.parametrize("num_labels", [2, 11])
def test_strides_do_not_matter(operator_target: Target, num_labels: int) -> None:
    problem = segmentation(2, num_labels, 3, (6, 7), "weights")
    probabilities, image, mask = (tensor.to(operator_target.device) for tensor in problem)
    wanted = value_and_gradient(gated_crf_loss, probabilities, image, mask=mask)

    def strided(tensor: Tensor) -> Tensor:
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)

    result = value_and_gradient(
        gated_crf_loss,
        probabilities.to(memory_format=torch.channels_last),
        strided(image),
        mask=strided(mask),
    )
    assert torch.equal(result["value"], wanted["value"])
    assert torch.equal(result["gradient"], wanted["gradient"])


def test_masks_of_any_dtype_and_of_one_channel(target: Target) -> None:
    problem = segmentation(2, 3, 3, (5, 6), "bool")
    probabilities, image, mask = (tensor.to(target.device) for tensor in problem)
    wanted = target.functions.gated_crf_loss(probabilities, image, mask=mask)
    for other in (mask.byte(), mask.long(), mask.half(), mask.double(), mask[:, None]):
        assert torch.equal(
            target.functions.gated_crf_loss(probabilities, image, mask=other), wanted
        )


def test_images_of_any_dtype(operator_target: Target) -> None:
    problem = segmentation(1, 3, 3, (5, 6))
    probabilities, image = (tensor.to(operator_target.device) for tensor in problem[:2])
    wanted = gated_crf_loss(probabilities, image)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        # Integers below 64 are exact in all of them.
        assert torch.equal(gated_crf_loss(probabilities, image.to(dtype)), wanted)


@pytest.mark.parametrize("radius", [2**31 - 1, 2**70])
def test_radius_beyond_the_image(target: Target, radius: int) -> None:
    probabilities, image, _ = segmentation(1, 3, 3, (5, 6))
    probabilities, image = probabilities.to(target.device), image.to(target.device)
    wanted = target.functions.gated_crf_loss(probabilities, image, 5)
    assert torch.equal(target.functions.gated_crf_loss(probabilities, image, radius), wanted)


def test_no_images(target: Target) -> None:
    probabilities = torch.ones(0, 2, 4, 5, device=target.device)
    image, mask = probabilities[:, :1], probabilities[:, 0]
    for masked in (None, mask):
        result = value_and_gradient(
            target.functions.gated_crf_loss, probabilities, image, mask=masked
        )
        assert float(result["value"]) == 0
        assert result["gradient"].shape == probabilities.shape


def test_image_in_other_units_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_image_checks, "_warned", set())
    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    probabilities = torch.ones(1, 2, 4, 5)
    with pytest.warns(UserWarning, match=r"values within 0\.\.1, while srgb = 15") as caught:
        gated_crf_loss(probabilities, image)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gated_crf_loss(probabilities, image)
        monkeypatch.setattr(_image_checks, "_warned", set())
        gated_crf_loss(probabilities, image, kernels=[(1.0, 6.0, 0.1), (1.0, 6.0, None)])
        gated_crf_loss(probabilities, image, kernels=[(1.0, 6.0, None)])
    with pytest.raises(ValueError, match="image: got NaN"):
        gated_crf_loss(probabilities, image / 0)


def test_image_is_a_constant(target: Target) -> None:
    probabilities, image, _ = segmentation(1, 3, 3, (5, 6))
    leaf = image.to(target.device, torch.float64).requires_grad_()
    probabilities = probabilities.to(target.device).requires_grad_()
    target.functions.gated_crf_loss(probabilities, leaf).backward()
    assert leaf.grad is None
    assert probabilities.grad is not None


def test_repeats_to_the_bit(operator_target: Target) -> None:
    problem = segmentation(2, 9, 3, (12, 40), "weights")
    probabilities, image, mask = (tensor.to(operator_target.device) for tensor in problem)
    first, second = (
        value_and_gradient(gated_crf_loss, probabilities.float(), image, mask=mask)
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    probabilities, image, mask = segmentation(3, 5, 3, (200, 210), "weights")
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            results.append(
                value_and_gradient(gated_crf_loss, probabilities.to(dtype), image, 2, mask=mask)
            )
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_sources_are_a_factor_of_the_probabilities() -> None:
    """Up to a constant: pairs whose other pixel is no source get no gradient."""
    values, image, _ = segmentation(2, 3, 3, (5, 6))
    values.requires_grad_()
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    positions = torch.stack([rows, columns]).flatten(1).t().double()
    steps = torch.cdist(positions, positions, p=math.inf)
    near = (steps > 0) & (steps <= 2)
    generator = torch.Generator().manual_seed(6)
    sources = (torch.rand(2, 30, generator=generator) > 0.3).double()
    charged = sources * (torch.arange(30) % 2)
    total = values.new_zeros(())
    for s, colours, speaks, counts in zip(
        values.flatten(2), image.double().flatten(2), sources, charged, strict=True
    ):
        kernel = (-torch.cdist(positions, positions).square() / (2 * 3**2)).exp() * near
        kernel = kernel * (-torch.cdist(colours.t(), colours.t()).square() / (2 * 20**2)).exp()
        total = total + (counts[:, None] * kernel * speaks * (1 - s.t() @ s)).sum()
    (wanted,) = torch.autograd.grad(total / charged.sum(), values)
    factor, mask = (m.view(-1, 1, 5, 6) for m in (sources, charged))
    loss = gated_crf_loss(values * factor, image, 2, ((1.0, 3.0, 20.0),), mask)
    (result,) = torch.autograd.grad(loss, values)
    assert wanted.any()
    torch.testing.assert_close(result, wanted)
