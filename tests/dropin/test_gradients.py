"""Gradients through the calls of pydensecrf, and CRFs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from calls import FEATURES, IMAGE, LABELS, SOFTMAX, H, K, N, U, W
from torch import Tensor

from deepcrf_ext import DenseCRFParams, dense_crf, pydensecrf


def marginals(
    unary: Any = U,
    compat: Any = 3,
    matrix: Any = 1,
    sxy: Any = 3,
    srgb: Any = 30,
    image: Any = IMAGE,
    features: Any = FEATURES,
    **options: Any,
) -> Any:
    crf = pydensecrf.DenseCRF2D(W, H, K, **options)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy, compat)
    crf.addPairwiseBilateral(20, srgb, image, matrix)
    crf.addPairwiseEnergy(features, 1)
    return crf.inference(2)


TENSORS: dict[str, Callable[[], Tensor]] = {
    "unary": lambda: torch.from_numpy(U.copy()),
    "compat": lambda: torch.tensor(2.0),
    "matrix": lambda: torch.linspace(-1, 2, K * K).view(K, K),
}


@pytest.mark.parametrize("name", TENSORS)
def test_gradients(name: str) -> None:
    """Those of finite differences, in a direction."""
    value = TENSORS[name]().requires_grad_()
    result = marginals(**{name: value})
    assert isinstance(result, Tensor)
    upstream = torch.from_numpy(np.random.default_rng(7).standard_normal((K, N))).float()
    (gradient,) = torch.autograd.grad((result * upstream).sum(), [value])
    direction = torch.from_numpy(np.random.default_rng(8).standard_normal(value.shape)).float()
    step = 1e-2
    sides = [
        float(
            (
                torch.from_numpy(marginals(**{name: value.detach() + sign * step * direction}))
                * upstream
            )
            .double()
            .sum()
        )
        for sign in (1, -1)
    ]
    wanted = (sides[0] - sides[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(wanted, rel=0.02, abs=1e-3)


def test_tensors_without_gradients_give_arrays() -> None:
    unary = torch.from_numpy(U)
    assert isinstance(marginals(unary), np.ndarray)
    with torch.no_grad():
        result = marginals(unary.clone().requires_grad_())
    np.testing.assert_array_equal(result, marginals())


def test_steps_are_arrays_in_any_case() -> None:
    crf = pydensecrf.DenseCRF(N, K)
    crf.setUnaryEnergy(torch.from_numpy(U).requires_grad_())
    Q, tmp1, tmp2 = crf.startInference()
    crf.stepInference(Q, tmp1, tmp2)
    assert isinstance(Q, np.ndarray)
    assert isinstance(crf.klDivergence(Q), float)


def test_softmax_keeps_gradients() -> None:
    softmax = torch.from_numpy(SOFTMAX.copy()).requires_grad_()
    energies = pydensecrf.unary_from_softmax(softmax, 0.8)
    np.testing.assert_allclose(
        energies.detach().numpy(), pydensecrf.unary_from_softmax(SOFTMAX, 0.8), rtol=1e-6
    )
    energies.sum().backward()
    assert softmax.grad is not None
    assert softmax.grad.abs().sum() > 0


def test_a_device_that_is_named() -> None:
    np.testing.assert_array_equal(marginals(device="cpu"), marginals())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda() -> None:
    wanted = marginals()
    result = marginals(device="cuda")
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, wanted, atol=1e-4)
    crf = pydensecrf.DenseCRF(N, K, device="cuda")
    crf.setUnaryEnergy(pydensecrf.unary_from_labels(LABELS, K, 0.7))
    crf.addPairwiseEnergy(pydensecrf.create_pairwise_gaussian((3, 3), (H, W)), 3)
    Q, tmp1, tmp2 = crf.startInference()
    crf.stepInference(Q, tmp1, tmp2)
    np.testing.assert_allclose(Q, crf.inference(1), atol=1e-5)
    value = torch.from_numpy(U).cuda().requires_grad_()
    assert marginals(value, device="cuda").is_cuda


SMOOTHED = {
    "sxy": torch.tensor(3.0),
    "sxy of two": torch.tensor([3.0, 2.0]),
    "srgb": torch.tensor([30.0, 20.0, 40.0]),
    "image": torch.from_numpy(IMAGE).float(),
    "features": torch.from_numpy(FEATURES),
}


@pytest.mark.parametrize("name", SMOOTHED)
def test_gradients_in_features(name: str) -> None:
    """Those of the operator's kernels, which are not those of differences: they are there."""
    value = SMOOTHED[name].clone().requires_grad_()
    result = marginals(**{name.split()[0]: value})
    np.testing.assert_allclose(
        result.detach().numpy(), marginals(**{name.split()[0]: SMOOTHED[name]}), atol=1e-5
    )
    (gradient,) = torch.autograd.grad(result[0].sum(), [value])
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_gradients_in_widths_are_those_of_the_operator() -> None:
    """`dense_crf` of the same problem."""
    widths = [torch.tensor([6.0]), torch.tensor([20.0])]
    gradients = []
    for drop_in in (True, False):
        sxy, srgb = leaves = [width.clone().requires_grad_() for width in widths]
        if drop_in:
            crf = pydensecrf.DenseCRF2D(W, H, K)
            crf.setUnaryEnergy(U)
            crf.addPairwiseGaussian(3, 3)
            crf.addPairwiseBilateral(sxy.expand(2), srgb.expand(3), IMAGE, 4)
            result = crf.inference(3)
        else:
            params = DenseCRFParams(3, 3, sxy.expand(2), srgb.expand(3), 4)
            image = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
            energies = torch.from_numpy(U).view(1, K, H, W)
            result = dense_crf(energies, image, params, 3)[0].flatten(1)
        gradients.append(torch.autograd.grad(result[0].square().sum(), leaves))
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
