"""The interface of pydensecrf, also against pydensecrf itself where that is installed."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from dense_problems import scene
from numpy.typing import NDArray

import deepcrf_ext.pydensecrf as ours
from deepcrf_ext import DenseCRFParams, dense_crf
from deepcrf_ext.ops.dense_crf_params import PRESETS

H, W, K = 26, 33, 4


def problem(num_labels: int = K) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Energies [K, H * W] and an image [H, W, 3]."""
    unary, image = scene(H, W, num_labels)
    return unary[0].flatten(1).numpy(), image[0].permute(1, 2, 0).contiguous().numpy()


def script(
    dcrf: ModuleType, unary: Any, image: Any, iterations: int = 5, **options: Any
) -> NDArray[np.float32]:
    """What every script does."""
    d = dcrf.DenseCRF2D(W, H, len(unary))
    d.setUnaryEnergy(unary)
    gaussian = {name: value for name, value in options.items() if name != "compat_bilateral"}
    d.addPairwiseGaussian(**{"sxy": 3, "compat": 3, **gaussian})
    bilateral = {name: value for name, value in options.items() if name == "normalization"}
    compat = options.get("compat_bilateral", 10)
    d.addPairwiseBilateral(sxy=(80, 60), srgb=(13, 11, 17), rgbim=image, compat=compat, **bilateral)
    return np.array(d.inference(iterations))


COMPATIBILITIES = {
    "potts": 2.5,
    "diagonal": np.linspace(-3, -1, K, dtype=np.float32),
    "matrix": np.random.default_rng(0).normal(size=(K, K)).astype(np.float32),
}


@pytest.fixture
def pydensecrf() -> ModuleType:
    return pytest.importorskip("pydensecrf.densecrf")


@pytest.mark.parametrize("num_labels", [2, 11, 21, 150])
@pytest.mark.parametrize("iterations", [1, 10])
def test_agrees_with_pydensecrf(pydensecrf: ModuleType, num_labels: int, iterations: int) -> None:
    unary, image = problem(num_labels)
    result = script(ours, unary, image, iterations)
    wanted = script(pydensecrf, unary, image, iterations)
    assert np.abs(result - wanted).max() < 1e-3
    assert (result.argmax(0) == wanted.argmax(0)).mean() > 0.999


@pytest.mark.parametrize("num_labels", [2, 11, 21, 150])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_agrees_with_pydensecrf(
    pydensecrf: ModuleType, preset: str, num_labels: int
) -> None:
    """The same label on 99.9 % of the pixels, and marginals within 1e-3, after every iteration."""
    unary, image = problem(num_labels)
    params = PRESETS[preset]
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    crf = pydensecrf.DenseCRF2D(W, H, num_labels)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(params.gaussian_sxy, params.gaussian_weight)
    crf.addPairwiseBilateral(
        params.bilateral_sxy, params.bilateral_srgb, image, params.bilateral_weight
    )
    for iterations in range(1, 11):
        wanted = np.array(crf.inference(iterations)).reshape(num_labels, H, W)
        energies = torch.from_numpy(unary).view(1, num_labels, H, W)
        result = dense_crf(energies, planes, params, iterations)[0].numpy()
        assert np.abs(result - wanted).max() < 1e-3
        assert (result.argmax(0) == wanted.argmax(0)).mean() >= 0.999


@pytest.mark.parametrize(
    ("height", "width", "num_labels", "constant"),
    [(1, 1, 3, False), (1, 9, 2, False), (8, 1, 5, False), (7, 9, 1, False), (12, 15, 3, True)],
)
def test_odd_problems_agree_with_pydensecrf(
    pydensecrf: ModuleType, height: int, width: int, num_labels: int, constant: bool
) -> None:
    unary, image = scene(height, width, num_labels)
    planes = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    if constant:
        planes[:] = 128
    results = []
    for module in (ours, pydensecrf):
        d = module.DenseCRF2D(width, height, num_labels)
        d.setUnaryEnergy(unary[0].flatten(1).numpy())
        d.addPairwiseGaussian(sxy=3, compat=3)
        d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=planes, compat=10)
        results.append(np.array(d.inference(3)))
    assert np.abs(results[0] - results[1]).max() < 1e-3


@pytest.mark.parametrize("kind", COMPATIBILITIES)
@pytest.mark.parametrize("normalization", list(ours.NormalizationType))
def test_settings_agree_with_pydensecrf(
    pydensecrf: ModuleType, kind: str, normalization: ours.NormalizationType
) -> None:
    unary, image = problem()
    options = {"compat": COMPATIBILITIES[kind], "compat_bilateral": 1.5}
    result = script(ours, unary, image, normalization=normalization, **options)
    wanted = script(
        pydensecrf,
        unary,
        image,
        normalization=getattr(pydensecrf, normalization.name),
        **options,
    )
    assert np.abs(result - wanted).max() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(9, 13), (5, 14), (11, 13), (3, 3)])
@pytest.mark.parametrize("normalization", range(4))
def test_any_number_of_variables_agrees_with_pydensecrf(
    pydensecrf: ModuleType, height: int, width: int, normalization: int
) -> None:
    """No multiple of four, in dark images, whose features lie around the origin."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        unary = rng.normal(size=(K, height * width)).astype(np.float32)
        image = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        srgb = tuple(rng.uniform(5, 40, 3))
        marginals, divergences = [], []
        for module in (ours.densecrf, pydensecrf):
            crf = module.DenseCRF2D(width, height, K)
            crf.setUnaryEnergy(unary)
            crf.addPairwiseGaussian(2, COMPATIBILITIES["matrix"], 1, normalization)
            crf.addPairwiseBilateral((4, 60), srgb, image, 3, 1, normalization)
            Q, tmp1, tmp2 = crf.startInference()
            crf.stepInference(Q, tmp1, tmp2)
            divergences.append(crf.klDivergence(Q))
            marginals.append(np.stack([np.array(Q), np.array(crf.inference(4))]))
        np.testing.assert_allclose(*marginals, atol=2e-5)
        np.testing.assert_allclose(*divergences, rtol=2e-5)


def test_agrees_with_the_operator() -> None:
    unary, image = problem()
    d = ours.DenseCRF2D(W, H, K)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    energies = torch.from_numpy(unary).view(1, K, H, W)
    wanted = dense_crf(energies, torch.from_numpy(image).permute(2, 0, 1)[None], DenseCRFParams())
    assert np.array_equal(d.inference(10), wanted.flatten(2)[0].numpy())


@pytest.mark.parametrize("kind", COMPATIBILITIES)
def test_compatibilities_are_weights_of_the_operator(kind: str) -> None:
    """Numbers as they are; diagonals and matrices, which are energies, by their negatives."""
    unary, image = problem()
    given = COMPATIBILITIES[kind]
    result = script(ours, unary, image, compat=given, compat_bilateral=1.5)
    weight: Any = given
    if kind == "diagonal":
        weight = -torch.diag(torch.from_numpy(given))
    elif kind == "matrix":
        weight = -torch.from_numpy(given + given.T) / 2
    params = DenseCRFParams(3, weight, (60, 80), (13, 11, 17), 1.5)
    energies = torch.from_numpy(unary).view(1, K, H, W)
    wanted = dense_crf(energies, torch.from_numpy(image).permute(2, 0, 1)[None], params, 5)
    np.testing.assert_allclose(result, wanted.flatten(2)[0], atol=1e-5)


def test_steps_are_the_iterations() -> None:
    unary, image = problem()
    d = ours.DenseCRF2D(W, H, K)
    d.setUnaryEnergy(unary)
    d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=4)
    Q, tmp1, tmp2 = d.startInference()
    divergences = [d.klDivergence(Q)]
    for _ in range(3):
        d.stepInference(Q, tmp1, tmp2)
        divergences.append(d.klDivergence(Q))
    assert divergences == sorted(divergences, reverse=True)
    np.testing.assert_allclose(Q, d.inference(3), atol=1e-5)


def test_features_of_a_volume() -> None:
    """Three axes: the class without a grid over the general features."""
    rng = np.random.default_rng(1)
    volume = rng.random((4, 5, 6))
    truth = volume > 0.5
    d = ours.DenseCRF(volume.size, 2)
    d.setUnaryEnergy(ours.unary_from_labels(truth, 2, 0.7, zero_unsure=False))
    d.addPairwiseEnergy(ours.create_pairwise_gaussian((1, 1, 1), volume.shape), compat=1)
    d.addPairwiseEnergy(ours.create_pairwise_bilateral((5, 5, 5), 0.1, volume), compat=3)
    result = d.inference(3)
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)
    assert (result.argmax(0) == truth.flatten()).mean() > 0.9
