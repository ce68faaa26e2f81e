"""The dense CRF on images of any number of axes and channels, in any layout."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from accuracy import assert_close
from dense_problems import every_target, scene, volume
from targets import Target

from deepcrf_ext import (
    DenseCRFLattices,
    DenseCRFParams,
    dense_crf,
    reference,
    unary_from_labels,
)
from deepcrf_ext.ops import dense_crf_lattices
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


@pytest.mark.parametrize("shape", [(9,), (3, 4), (2, 2, 3)])
def test_as_many_channels_as_there_may_be(shape: tuple[int, ...]) -> None:
    unary, image = volume(shape, 255 - len(shape), 2)
    params = DenseCRFParams(bilateral_srgb=500)
    assert_close(dense_crf(unary, image, params, 2).sum(1), torch.ones_like(unary[:, 0]))
    with pytest.raises(ValueError, match=f"must be at most {255 - len(shape)} beside"):
        dense_crf(unary, torch.cat([image, image[:, :1]], 1), params)


def test_no_images_of_floats() -> None:
    unary, image = scene(6, 8, 3)
    assert dense_crf(unary[:0], image[:0].float()).shape == (0, 3, 6, 8)


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
