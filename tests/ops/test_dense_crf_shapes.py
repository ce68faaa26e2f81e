"""The dense CRF on images of any number of axes and channels, in any layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import assert_close
from dense_problems import every_target, scene, volume
from targets import Target
from torch import Tensor

from deepcrf_ext import (
    DenseCRFLattices,
    DenseCRFParams,
    dense_crf,
    dense_crf_loss,
    reference,
    unary_from_labels,
)
from deepcrf_ext.nn import DenseCRF
from deepcrf_ext.ops import _image_checks, dense_crf_lattices
from deepcrf_ext.ops._device_cache import DeviceCache
from deepcrf_ext.ops.permutohedral_filter import PermutohedralLattice

PARAMS = DenseCRFParams(2, 1.0, 4, 25, 2.0)


@pytest.mark.parametrize(
    ("shape", "num_channels", "num_labels"),
    [
        ((40,), 1, 2),
        ((25,), 3, 5),
        ((7, 9), 1, 3),
        ((7, 9), 16, 3),
        ((5, 4), 60, 2),
        ((4, 5, 6), 1, 2),
        ((3, 6, 5), 4, 12),
        ((1, 1, 1), 1, 2),
    ],
)
def test_accuracy(
    operator_target: Target, shape: tuple[int, ...], num_channels: int, num_labels: int
) -> None:
    unary, image = volume(shape, num_channels, num_labels)
    wanted = reference.dense_crf(unary.double(), image, PARAMS, 3)
    unary, image = unary.to(operator_target.device), image.to(operator_target.device)
    result = operator_target.functions.dense_crf(unary, image, PARAMS, 3)
    assert result.shape == unary.shape
    assert_close(result.cpu(), wanted.float())


@every_target
def test_by_brute_force(target: Target) -> None:
    """Pixels so far apart in position or channels that each is alone, or equal to its like."""
    image = torch.tensor([[[0.0, 200.0, 0.0], [200.0, 0.0, 200.0]]], device=target.device)
    energies = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0)).to(image)
    params = DenseCRFParams(0.01, 1.0, 1e6, 1.0, 2.0)
    marginals = (-energies).softmax(1)
    mean = marginals.clone()
    mean[..., ::2] = marginals[..., ::2].mean(-1, keepdim=True)
    wanted = (-energies + marginals + 2 * mean).softmax(1)
    assert_close(target.functions.dense_crf(energies, image, params, 1), wanted)


@every_target
def test_widths_one_for_each_axis_and_channel(target: Target) -> None:
    unary, image = volume((3, 6, 5), 2, 3, target.device)
    run = target.functions.dense_crf
    same = DenseCRFParams((2, 2, 2), 1.0, [4, 4, 4], np.array([25, 25]), 2.0)
    assert torch.equal(run(unary, image, same, 2), run(unary, image, PARAMS, 2))

    uneven = DenseCRFParams((1, 2, 3), 1.0, (5.0, 4, 2), (20, 40), 2.0)
    stretched = (
        image * torch.tensor([2, 1], dtype=torch.float32, device=image.device)[:, None, None, None]
    )
    scaled = DenseCRFParams((1, 2, 3), 1.0, (5.0, 4, 2), 40, 2.0)
    result = run(unary, image, uneven, 2)
    assert_close(result, run(unary, stretched, scaled, 2))
    assert not torch.allclose(result, run(unary, image, PARAMS, 2), atol=1e-2)


def test_axes_keep_their_order() -> None:
    """A width belongs to the axis at its place: a wide kernel smooths along that one alone."""
    generator = torch.Generator().manual_seed(0)
    unary = torch.randn(1, 2, 5, 30, generator=generator)
    image = torch.zeros(1, 1, 5, 30)
    along_rows = dense_crf(unary, image, DenseCRFParams((0.05, 8), 20.0, 1, 1, 0.0), 5).argmax(1)
    changes = [int((along_rows.diff(dim=axis) != 0).sum()) for axis in (1, 2)]
    assert changes[1] < changes[0] / 3
    turned = dense_crf(unary, image, DenseCRFParams((8, 0.05), 20.0, 1, 1, 0.0), 5).argmax(1)
    changes = [int((turned.diff(dim=axis) != 0).sum()) for axis in (1, 2)]
    assert changes[0] < changes[1] / 3


@every_target
def test_layouts_do_not_matter(target: Target) -> None:
    unary, image = scene(7, 9, 4, target.device, batch=2)
    run = target.functions.dense_crf
    wanted = run(unary, image, PARAMS, 2)
    last = [tensor.to(memory_format=torch.channels_last) for tensor in (unary, image)]
    assert torch.equal(run(*last, PARAMS, 2), wanted)
    wide = [tensor.repeat_interleave(2, 3)[..., ::2] for tensor in (unary, image)]
    assert torch.equal(run(*wide, PARAMS, 2), wanted)
    expanded = run(unary[:1].expand(2, -1, -1, -1), image[:1].expand(2, -1, -1, -1), PARAMS, 2)
    assert torch.equal(expanded, wanted[:1].expand_as(wanted))
    flipped = run(unary.mT, image.mT, PARAMS, 2)
    assert_close(flipped, run(unary.mT.contiguous(), image.mT.contiguous(), PARAMS, 2))


@every_target
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_images_are_taken_in_float32(target: Target, dtype: torch.dtype) -> None:
    unary, image = scene(7, 9, 4, target.device)
    run = target.functions.dense_crf
    assert torch.equal(
        run(unary, image.to(dtype).float(), PARAMS, 2), run(unary, image.to(dtype), PARAMS, 2)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_filtered_in_float32(operator_target: Target, dtype: torch.dtype) -> None:
    unary, image = scene(7, 9, 4, operator_target.device)
    result = dense_crf(unary.to(dtype), image, PARAMS, 2)
    assert torch.equal(result, dense_crf(unary.to(dtype).float(), image, PARAMS, 2).to(dtype))


@every_target
@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, r"unary: got shape \[3\], must be \[B, K, \*S\]", {"unary": torch.zeros(3)}),
        (ValueError, "unary: got shape", {"unary": torch.zeros(1, 2, 3, 4, 5, 6)}),
        (ValueError, r"unary: got shape \[6, 8\]", {"unary": torch.zeros(6, 8)}),
        (TypeError, "unary: got dtype", {"unary": torch.zeros(1, 3, 6, 8, dtype=torch.int64)}),
        (TypeError, "unary: got list", {"unary": [1.0]}),
        (ValueError, "image: got shape", {"image": torch.zeros(1, 6, 8)}),
        (ValueError, "image: got shape", {"image": torch.zeros(1, 3, 6, 7)}),
        (TypeError, "image: got ndarray", {"image": np.zeros((1, 3, 6, 8))}),
        (ValueError, "image: got 254 channels", {"image": torch.zeros(1, 254, 6, 8)}),
        (TypeError, "params: got dict", {"params": {}}),
        (ValueError, "iterations: got -1", {"iterations": -1}),
        (TypeError, "iterations: got float", {"iterations": 2.0}),
        (TypeError, "iterations: got bool", {"iterations": True}),
        (ValueError, "gaussian_sxy: got 3 widths", {"params": DenseCRFParams((1, 2, 3))}),
        (ValueError, "bilateral_sxy: got 1 widths", {"params": DenseCRFParams(bilateral_sxy=[1])}),
        (
            ValueError,
            "bilateral_srgb: got 2 widths, must be one number or 3, one for each channel",
            {"params": DenseCRFParams(bilateral_srgb=torch.ones(2))},
        ),
    ],
)  # fmt: skip
def test_errors_name_the_argument(
    target: Target, error: type[Exception], match: str, change: dict[str, Any]
) -> None:
    unary, image = scene(6, 8, 3, target.device)
    moved = {
        name: value.to(target.device) if isinstance(value, Tensor) else value
        for name, value in change.items()
    }
    with pytest.raises(error, match=match):
        target.functions.dense_crf(**{"unary": unary, "image": image, **moved})


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (TypeError, {"gaussian_sxy": True}),
        (TypeError, {"gaussian_sxy": np.bool_(True)}),
        (TypeError, {"bilateral_sxy": (1, True)}),
        (TypeError, {"bilateral_sxy": (1, "2")}),
        (ValueError, {"bilateral_sxy": (1, 0)}),
        (ValueError, {"bilateral_sxy": ()}),
        (ValueError, {"bilateral_srgb": torch.tensor([1.0, -1.0])}),
        (ValueError, {"bilateral_srgb": torch.tensor(torch.nan, requires_grad=True)}),
        (ValueError, {"bilateral_srgb": torch.ones(2, 2)}),
        (TypeError, {"bilateral_srgb": torch.ones(2, dtype=torch.bool)}),
        (TypeError, {"gaussian_weight": True}),
        (TypeError, {"gaussian_weight": np.bool_(False)}),
        (ValueError, {"gaussian_weight": np.float32(np.inf)}),
        (ValueError, {"gaussian_weight": -1e39}),
        (ValueError, {"bilateral_sxy": 10**400}),
        (ValueError, {"bilateral_srgb": (1.0, 1e39)}),
    ],
)
def test_bad_parameters(error: type[Exception], change: dict[str, Any]) -> None:
    with pytest.raises(error, match=next(iter(change))):
        DenseCRFParams(**change)


def test_numpy_numbers() -> None:
    unary, image = scene(6, 8, 3)
    params = DenseCRFParams(
        np.float32(2), np.int64(1), np.arange(4, 9)[0], np.array(25), np.float16(2)
    )
    assert params == PARAMS
    assert all(type(getattr(params, name)) is float for name in dense_crf_lattices.WIDTHS)
    wanted = dense_crf(unary, image, PARAMS, 3)
    assert torch.equal(dense_crf(unary, image, params, np.int64(3)), wanted)  # type: ignore[arg-type]
    fixed = DenseCRFParams(torch.tensor(2), 1.0, torch.tensor([4.0, 4]), torch.tensor(25.0), 2.0)
    assert fixed.bilateral_sxy == (4.0, 4.0)
    assert torch.equal(dense_crf(unary, image, fixed, 3), wanted)


def test_lattices_are_those_of_the_widths() -> None:
    unary, image = scene(6, 8, 3)
    learnt = torch.tensor([4.0, 4.0], requires_grad=True)
    for widths in ((4, 4), learnt):
        params = DenseCRFParams(2, 1.0, widths, 25, 2.0)
        lattices = DenseCRFLattices.build(image, params)
        assert_close(
            dense_crf(unary, image, params, 2, lattices).detach(),
            dense_crf(unary, image, PARAMS, 2),
        )
        with pytest.raises(ValueError, match="lattices: got those of"):
            dense_crf(unary, image, DenseCRFParams(2, 1.0, (4, 5), 25, 2.0), 2, lattices)
        with pytest.raises(ValueError, match="lattices: got those of"):
            dense_crf(unary.mT, image.mT, params, 2, lattices)
    fixed = DenseCRFLattices.build(image, PARAMS)
    for width, fits in ((4.0, True), (5.0, False), ([4.0, 4.0], False)):
        double = torch.tensor(width, dtype=torch.float64, requires_grad=True)
        params = replace(PARAMS, bilateral_sxy=double)
        with nullcontext() if fits else pytest.raises(ValueError, match="lattices: got those of"):
            dense_crf(unary, image, params, 2, fixed)


def test_learnt_widths_are_one_for_each_axis() -> None:
    unary, image = scene(6, 8, 3)
    params = DenseCRFParams(bilateral_sxy=torch.ones(3, requires_grad=True))
    with pytest.raises(ValueError, match="bilateral_sxy: got 3 widths, must be one number or 2"):
        dense_crf(unary, image, params)


def test_a_width_that_has_changed_has_other_lattices() -> None:
    unary, image = scene(6, 8, 3)
    width = torch.tensor(4.0, requires_grad=True)
    params = replace(PARAMS, bilateral_sxy=width)
    lattices = DenseCRFLattices.build(image, params)
    with torch.no_grad():
        width.add_(1)  # as a step of an optimiser does
    with pytest.raises(ValueError, match="lattices: got those of"):
        dense_crf(unary, image, params, 2, lattices)


def test_a_lattice_of_positions_that_fills_the_cache_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unary, image = scene(6, 8, 3)
    wanted = dense_crf(unary, image, PARAMS, 2)
    for max_bytes, kept in ((6 * 8 * 3 * 24, 1), (6 * 8 * 3 * 24 - 1, 0)):
        cache = DeviceCache(max_bytes, PermutohedralLattice.kept_tensors)
        monkeypatch.setattr(dense_crf_lattices, "_GAUSSIAN_LATTICES", cache)
        assert torch.equal(dense_crf(unary, image, PARAMS, 2), wanted)
        assert len(cache) == kept


def warnings_of(image: Tensor, params: DenseCRFParams = PARAMS) -> list[str]:
    unary = torch.zeros(image.shape[0], 2, *image.shape[2:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dense_crf(unary, image, params, 1)
        dense_crf(unary, image, params, 1)
    return [str(warning.message) for warning in caught]


def test_images_in_other_units_warn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_image_checks, "_warned", set())
    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert warnings_of(255 * image) == []
    assert warnings_of(torch.zeros(1, 3, 4, 5)) == []
    assert warnings_of((image > 0.5).to(torch.uint8)) == []
    assert warnings_of(image, DenseCRFParams(bilateral_srgb=0.1)) == []
    (within,) = warnings_of(image)
    assert "values within 0..1" in within
    assert "0..255" in within
    mean, std = 123.675, 58.395  # of a normalisation in bfloat16, that is undone
    undone = ((255 * image.round() - mean) / std).bfloat16().float() * std + mean
    assert undone.min() < -0.1
    assert warnings_of(undone) == []
    (negative,) = warnings_of(2 * image - 1)
    assert "negative values" in negative
    assert warnings_of(image) == []


@pytest.mark.parametrize(("srgb", "warns"), [(1.0, True), (0.99, False), ((5, 0.5, 5), False)])
def test_units_at_the_border_of_what_warns(
    monkeypatch: pytest.MonkeyPatch, srgb: float | tuple[float, ...], warns: bool
) -> None:
    """An image of 0 and 1 under kernels of about 1."""
    monkeypatch.setattr(_image_checks, "_warned", set())
    image = (torch.arange(60) % 2).float().view(1, 3, 4, 5)
    assert len(warnings_of(image, DenseCRFParams(bilateral_srgb=srgb))) == warns
    monkeypatch.setattr(_image_checks, "_warned", set())
    assert warnings_of(1.01 * image, DenseCRFParams(bilateral_srgb=srgb)) == []


@pytest.mark.parametrize("shape", [(9,), (3, 4), (2, 2, 3)])
def test_as_many_channels_as_there_may_be(shape: tuple[int, ...]) -> None:
    unary, image = volume(shape, 255 - len(shape), 2)
    params = DenseCRFParams(bilateral_srgb=500)
    assert_close(dense_crf(unary, image, params, 2).sum(1), torch.ones_like(unary[:, 0]))
    with pytest.raises(ValueError, match=f"must be at most {255 - len(shape)} beside"):
        dense_crf(unary, torch.cat([image, image[:, :1]], 1), params)


@pytest.mark.parametrize("call", ["dense_crf", "DenseCRF", "DenseCRFLattices", "dense_crf_loss"])
def test_warnings_name_the_line_of_the_caller(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(_image_checks, "_warned", set())
    image, unary = torch.rand(1, 3, 4, 5), torch.ones(1, 2, 4, 5)
    calls: dict[str, Callable[[], object]] = {
        "dense_crf": lambda: dense_crf(unary, image),
        "DenseCRF": lambda: DenseCRF(2)(unary, image),
        "DenseCRFLattices": lambda: DenseCRFLattices.build(image, DenseCRFParams()),
        "dense_crf_loss": lambda: dense_crf_loss(unary, image),
    }
    with pytest.warns(UserWarning, match=r"image: got values within 0\.\.1") as caught:
        calls[call]()
    assert [warning.filename for warning in caught] == [__file__]


def test_negative_values_beyond_rounding_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.full((1, 3, 4, 5), 200.0)
    for low, count in ((-1.9, 0), (-2.1, 1)):
        monkeypatch.setattr(_image_checks, "_warned", set())
        image[0, 0, 0, 0] = low
        assert len(warnings_of(image)) == count


def test_learnt_widths_warn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_image_checks, "_warned", set())
    learnt = torch.tensor(13.0, requires_grad=True)
    assert len(warnings_of(torch.rand(1, 3, 4, 5), DenseCRFParams(bilateral_srgb=learnt))) == 1


def test_no_images_of_floats() -> None:
    unary, image = scene(6, 8, 3)
    assert dense_crf(unary[:0], image[:0].float()).shape == (0, 3, 6, 8)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_images_that_are_not_finite(bad: float) -> None:
    unary, image = scene(6, 8, 3)
    floating = image.float()
    floating[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="image: got NaN or infinite"):
        dense_crf(unary, floating)


def test_images_of_more_pixels_than_a_lattice_takes() -> None:
    """Before anything of their size is made."""
    image = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, 20000, 20000)
    values = torch.zeros(1, 2, 1, 1).expand(1, 2, 20000, 20000)
    calls: list[Callable[[], object]] = [
        lambda: dense_crf(values, image),
        lambda: DenseCRFLattices.build(image, DenseCRFParams()),
        lambda: dense_crf_loss(values, image),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="image: got 400000000 pixels, must be at most 357913"):
            call()


def test_kernels_too_narrow_for_an_image() -> None:
    unary, image = scene(6, 8, 3)
    with pytest.raises(ValueError, match=r"gaussian_sxy: .*widen the kernel"):
        dense_crf(unary, image, DenseCRFParams(gaussian_sxy=1e-6))
    with pytest.raises(ValueError, match=r"bilateral_sxy, bilateral_srgb: .*widen the kernel"):
        dense_crf(unary, image, DenseCRFParams(bilateral_srgb=1e-6))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 2)])
def test_labels_of_any_number_of_axes(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(2, *shape, dtype=torch.uint8)
    labels[1] = 2
    unary = unary_from_labels(labels, np.int64(3), np.float32(0.5))  # type: ignore[arg-type]
    assert unary.shape == (2, 3, *shape)
    assert torch.equal(unary.argmin(1), labels.long())


@pytest.mark.parametrize(
    ("shape", "num_channels", "num_labels"),
    [((12, 20, 18), 1, 3), ((7, 9, 8), 3, 5), ((30, 40), 3, 4), ((30, 40), 6, 2), ((200,), 2, 3)],
)
def test_agrees_with_pydensecrf(shape: tuple[int, ...], num_channels: int, num_labels: int) -> None:
    """Volumes as its utils describe them, pictures in the order of its DenseCRF2D."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    utils = pytest.importorskip("pydensecrf.utils")
    unary, image = volume(shape, num_channels, num_labels)
    near, far = [(*widths, 5.0)[: len(shape)] for widths in ((2.0, 3.0), (4.0, 6.0))]
    crf = densecrf.DenseCRF(int(np.prod(shape)), num_labels)
    crf.setUnaryEnergy(unary[0].flatten(1).numpy())
    for features, weight in (
        (utils.create_pairwise_gaussian(near, shape), 1.0),
        (utils.create_pairwise_bilateral(far, [20.0] * num_channels, image[0].numpy(), 0), 2.0),
    ):
        if len(shape) == 2:
            features[:2] = features[[1, 0]]
        crf.addPairwiseEnergy(np.ascontiguousarray(features), compat=weight)
    wanted = torch.tensor(np.array(crf.inference(5))).view(unary.shape)
    params = DenseCRFParams(near, 1.0, far, 20.0, 2.0)
    assert float((dense_crf(unary, image, params, 5) - wanted).abs().max()) < 1e-5
