"""The dense CRF loss (Tang et al. 2018)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import assert_accurate, assert_close
from dense_problems import every_target, scene
from hypothesis import given
from hypothesis import strategies as st
from image_loss_problems import assert_compiles_once, value_and_gradient
from targets import Target
from threads import torch_threads
from torch import Tensor

from deepcrf_ext import (
    DenseCRFLattices,
    DenseCRFParams,
    PermutohedralLattice,
    dense_crf_loss,
    reference,
)
from deepcrf_ext.ops.dense_crf_lattices import bilateral_features

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
AXES = [(30,), (5, 7), (3, 4, 5)]


def segmentation(
    batch: int, num_labels: int, channels: int, axes: tuple[int, ...], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities float64 [B, K, *S], an image float32 [B, C, *S] and weights [B, *S]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, num_labels, *axes, generator=generator, dtype=torch.float64)
    image = 40 * torch.rand(batch, channels, *axes, generator=generator)
    return logits.softmax(1), image, torch.rand(batch, *axes, generator=generator)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axes", AXES)
def test_definition(operator_target: Target, axes: tuple[int, ...], masked: bool) -> None:
    """Against the matrix of the filter, image by image and label by label."""
    probabilities, image, mask = (
        tensor.to(operator_target.device) for tensor in segmentation(2, 3, 2, axes)
    )
    scaled = probabilities * mask[:, None] if masked else probabilities
    total = 0.0
    for b in range(2):
        features = bilateral_features(image[b], 3.0, 20.0)
        lattice = PermutohedralLattice.from_planes(features)
        matrix = lattice.filter(torch.eye(features.shape[1]).to(probabilities))
        for k in range(3):
            column = scaled[b, k].flatten()
            total += float(column @ matrix @ column)
    value = dense_crf_loss(probabilities, image, 3.0, 20.0, mask if masked else None)
    assert float(value) == pytest.approx(-total / mask.numel(), rel=1e-12)


@pytest.mark.parametrize("axes", AXES)
def test_reference_over_all_pairs(axes: tuple[int, ...]) -> None:
    """The published sum, pair by pair."""
    probabilities, image, mask = segmentation(2, 3, 2, axes)
    total = 0.0
    pixels = torch.cartesian_prod(*(torch.arange(size) for size in axes)).view(-1, len(axes))
    for b in range(2):
        colours = image[b].flatten(1).t().double()
        values = (probabilities[b] * mask[b]).flatten(1).t()
        for p in range(len(pixels)):
            for q in range(len(pixels)):
                position = float((pixels[p] - pixels[q]).square().sum()) / 3.0**2
                colour = float((colours[p] - colours[q]).square().sum()) / 20.0**2
                kernel = torch.tensor(-0.5 * (position + colour)).exp()
                total += float(kernel * (values[p] @ values[q]))
    value = reference.dense_crf_loss(probabilities, image, 3.0, 20.0, mask, exact=True)
    # Features are float32.
    assert float(value) == pytest.approx(-total / mask.numel(), rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(20, 24), (32, 15)])
def test_near_the_exact_loss(height: int, width: int) -> None:
    """The lattice scales a kernel by a nearly constant factor; the direction is right."""
    unary, image = scene(height, width, 4, batch=2)
    probabilities = (-3 * unary.double()).softmax(1)
    lattice, exact = (
        value_and_gradient(function, probabilities, image, 8.0, 30.0)
        for function in (dense_crf_loss, lambda *args: reference.dense_crf_loss(*args, exact=True))
    )
    assert 0.5 < float(lattice["value"] / exact["value"]) < 1.0
    directions = lattice["gradient"].flatten(), exact["gradient"].flatten()
    assert float(torch.cosine_similarity(*directions, dim=0)) > 0.97


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "num_labels", "channels", "axes"),
    [
        (1, 1, 3, (1, 1)),
        (2, 2, 3, (4, 17)),
        (1, 21, 1, (6, 9)),
        (2, 5, 4, (40,)),
        (1, 3, 1, (4, 5, 6)),
    ],
)
def test_accuracy(
    operator_target: Target,
    batch: int,
    num_labels: int,
    channels: int,
    axes: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    probabilities, image, mask = segmentation(batch, num_labels, channels, axes)
    probabilities = probabilities.to(dtype)
    device = operator_target.device
    assert_accurate(
        value_and_gradient(
            dense_crf_loss, probabilities.to(device), image.to(device), 5, 20, mask.to(device)
        ),
        value_and_gradient(reference.dense_crf_loss, probabilities, image, 5, 20, mask),
        value_and_gradient(reference.dense_crf_loss, probabilities.double(), image, 5, 20, mask),
    )


@given(
    batch=st.integers(1, 2),
    num_labels=st.integers(1, 9),
    channels=st.integers(1, 4),
    axes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    sxy=st.sampled_from([0.1, 3, 80]),
    srgb=st.sampled_from([0.5, 13, 1e6]),
)
def test_ragged_problems(
    operator_target: Target,
    batch: int,
    num_labels: int,
    channels: int,
    axes: list[int],
    sxy: float,
    srgb: float,
) -> None:
    probabilities, image, mask = segmentation(batch, num_labels, channels, tuple(axes))
    device = operator_target.device
    result = value_and_gradient(
        dense_crf_loss, probabilities.to(device), image.to(device), sxy, srgb, mask.to(device)
    )
    wanted = value_and_gradient(reference.dense_crf_loss, probabilities, image, sxy, srgb, mask)
    assert_accurate(result, wanted, wanted)


def test_gradient_is_that_of_finite_differences(target: Target) -> None:
    problem = segmentation(2, 3, 2, (3, 4))
    probabilities, image, mask = (tensor.to(target.device) for tensor in problem)
    assert torch.autograd.gradcheck(
        lambda values: target.functions.dense_crf_loss(values, image, 3, 20, mask),
        probabilities.requires_grad_(),
    )


def test_second_derivative(operator_target: Target) -> None:
    problem = segmentation(1, 2, 2, (3, 4))
    probabilities, image, mask = (tensor.to(operator_target.device) for tensor in problem)
    assert torch.autograd.gradgradcheck(
        lambda values: dense_crf_loss(values, image, 3, 20, mask), probabilities.requires_grad_()
    )


def test_lattices_are_used_again(operator_target: Target) -> None:
    unary, image = scene(9, 12, 4, operator_target.device, batch=2)
    params = DenseCRFParams(bilateral_sxy=7, bilateral_srgb=20)
    lattices = DenseCRFLattices.build(image, params)
    probabilities = unary.softmax(1)
    wanted = dense_crf_loss(probabilities, image, 7, 20)
    assert torch.equal(dense_crf_loss(probabilities, image, 7, 20, lattices=lattices), wanted)
    with pytest.raises(ValueError, match="lattices: got"):
        dense_crf_loss(probabilities, image, 8, 20, lattices=lattices)
    with pytest.raises(ValueError, match="lattices: got"):
        dense_crf_loss(probabilities[:1], image[:1], 7, 20, lattices=lattices)
    with pytest.raises(TypeError, match="lattices: got int"):
        dense_crf_loss(probabilities, image, 7, 20, lattices=3)  # type: ignore[arg-type]


def test_masks_of_any_dtype_and_of_one_channel(target: Target) -> None:
    problem = segmentation(2, 3, 3, (5, 6))
    probabilities, image, mask = (tensor.to(target.device) for tensor in problem)
    mask = mask > 0.4
    wanted = target.functions.dense_crf_loss(probabilities, image, mask=mask)
    assert torch.equal(
        target.functions.dense_crf_loss(probabilities * mask[:, None], image), wanted
    )
    for other in (mask.byte(), mask.long(), mask.half(), mask.double(), mask[:, None]):
        assert torch.equal(
            target.functions.dense_crf_loss(probabilities, image, mask=other), wanted
        )


def test_nothing_in_the_mask_gives_zero(target: Target) -> None:
    problem = segmentation(2, 3, 3, (5, 6))
    probabilities, image, mask = (tensor.to(target.device) for tensor in problem)
    result = value_and_gradient(
        target.functions.dense_crf_loss, probabilities, image, mask=torch.zeros_like(mask)
    )
    assert float(result["value"]) == 0
    assert not result["gradient"].any()


def test_no_images(target: Target) -> None:
    probabilities = torch.ones(0, 2, 4, 5, device=target.device)
    result = value_and_gradient(
        target.functions.dense_crf_loss, probabilities, probabilities[:, :1]
    )
    assert float(result["value"]) == 0
    assert result["gradient"].shape == probabilities.shape


def test_widths_of_axes_and_channels(target: Target) -> None:
    """A width for each is an image scaled so, and positions too."""
    probabilities, image, _ = segmentation(1, 3, 2, (6, 7))
    probabilities, image = probabilities.to(target.device), image.to(target.device)
    each = target.functions.dense_crf_loss(probabilities, image, (4, 4), (10, 20))
    scaled = image / torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).to(image)
    assert float(each) == pytest.approx(
        float(target.functions.dense_crf_loss(probabilities, scaled, 4, 10)), rel=1e-12
    )
    assert not torch.equal(each, target.functions.dense_crf_loss(probabilities, image, (4, 8), 10))


def test_strides_do_not_matter(operator_target: Target) -> None:
    problem = segmentation(2, 4, 3, (6, 7))
    probabilities, image, mask = (tensor.to(operator_target.device) for tensor in problem)
    wanted = value_and_gradient(dense_crf_loss, probabilities, image, mask=mask)
    result = value_and_gradient(
        dense_crf_loss,
        probabilities.to(memory_format=torch.channels_last),
        image.to(memory_format=torch.channels_last),
        mask=mask.mT.contiguous().mT,
    )
    for name, value in wanted.items():
        assert_close(result[name], value)


def test_image_and_mask_are_constants(target: Target) -> None:
    problem = segmentation(1, 3, 3, (5, 6))
    probabilities, image = (tensor.to(target.device).requires_grad_() for tensor in problem[:2])
    mask = torch.ones(1, 5, 6, device=target.device, requires_grad=True)
    target.functions.dense_crf_loss(probabilities, image, mask=mask).backward()
    assert image.grad is None
    assert mask.grad is None
    assert probabilities.grad is not None


def test_threads_do_not_change_a_bit() -> None:
    probabilities, image, mask = segmentation(2, 5, 3, (190, 200))
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            results.append(
                value_and_gradient(dense_crf_loss, probabilities.float(), image, mask=mask)
            )
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_computes_losses_in_float32(operator_target: Target, dtype: torch.dtype) -> None:
    probabilities, image, _ = segmentation(1, 4, 3, (5, 6))
    probabilities = probabilities.to(operator_target.device, dtype)
    with torch.autocast(operator_target.device.type, torch.bfloat16):
        value = dense_crf_loss(probabilities, image.to(operator_target.device))
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    exact = reference.dense_crf_loss(probabilities.cpu().double(), image)
    assert_close(value.cpu(), exact.to(value.dtype))


def test_compiles_whole_for_any_size(operator_target: Target) -> None:
    problems = [segmentation(2, 3, 3, axes) for axes in [(5, 6), (7, 9), (8, 4)]]
    assert_compiles_once(
        dense_crf_loss, [tuple(t.to(operator_target.device) for t in each) for each in problems]
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"probabilities": [0.5]}, TypeError, "probabilities: got list"),
        ({"probabilities": torch.ones(1, 2, 4, 5).int()}, TypeError, "probabilities: got dtype"),
        ({"image": torch.ones(1, 3, 4, 6)}, ValueError, "image: got shape"),
        ({"image": torch.ones(1, 3, 4, 5).int()}, TypeError, "image: got dtype"),
        ({"sxy": 0}, ValueError, "sxy: got 0"),
        ({"sxy": "3"}, TypeError, "sxy: got str"),
        ({"srgb": -1.0}, ValueError, "srgb: got -1.0"),
        ({"sxy": (3, 3, 3)}, ValueError, "sxy: got 3 widths"),
        ({"srgb": (3, 3)}, ValueError, "srgb: got 2 widths"),
        ({"mask": torch.ones(1, 4, 6)}, ValueError, "mask: got shape"),
    ],
)
@every_target
def test_errors_name_the_argument(
    target: Target, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"probabilities": torch.ones(1, 2, 4, 5), "image": torch.ones(1, 3, 4, 5)}
    arguments = {**arguments, **changes}
    arguments = {
        name: value.to(target.device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    with pytest.raises(error, match=message):
        target.functions.dense_crf_loss(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sxy": 1e-6}, r"^sxy, srgb: .*widen the kernel"),
        ({"image": torch.ones(1, 254, 4, 5)}, "^image: got 254 channels, must be at most 253"),
        ({"srgb": torch.tensor(9.0, device="meta")}, "^srgb: got device meta"),
        ({"mask": torch.ones(1, 4, 5, device="meta")}, "^mask: got device meta, must be cpu as"),
    ],
)
def test_errors_speak_of_the_loss(changes: dict[str, Any], message: str) -> None:
    """Not of the parameters of the dense CRF, whose kernel it shares."""
    arguments = {"probabilities": torch.ones(1, 2, 4, 5), "image": torch.ones(1, 3, 4, 5)}
    with pytest.raises(ValueError, match=message):
        dense_crf_loss(**{**arguments, **changes})
