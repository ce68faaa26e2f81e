"""What pydensecrf leaves undefined, or refuses, is refused by an error that names the argument."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from calls import (
    DIAGONAL,
    FEATURES,
    IMAGE,
    LABELS,
    MATRIX,
    OURS,
    SOFTMAX,
    H,
    K,
    N,
    U,
    W,
    after,
    bilateral,
    crf,
    energy,
    gaussian,
    of,
)

from deepcrf_ext import pydensecrf as ours
from deepcrf_ext.ops import _image_checks


def labelled(labels: Any, count: Any = K, gt_prob: Any = 0.7, **kwargs: Any) -> Callable:
    return of("unary_from_labels", labels, count, gt_prob, **kwargs)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


NAN = np.float32(np.nan)
REFUSED: dict[str, list[tuple[type[Exception], Callable[[Any], Any]]]] = {
    "niter": [
        (TypeError, lambda m: crf(m, compat=3).inference(None)),
        (TypeError, lambda m: crf(m, compat=3).inference("2")),
        (TypeError, lambda m: crf(m, compat=3).inference(NAN)),
        (ValueError, lambda m: crf(m, compat=3).inference(-1)),
        (ValueError, lambda m: crf(m, compat=3).inference(2**40)),
    ],
    "nvar": [
        (TypeError, lambda m: m.DenseCRF(None, K)),
        (ValueError, lambda m: m.DenseCRF(2**31, K)),
    ],
    "w": [
        (ValueError, lambda m: m.DenseCRF2D(0, H, K)),
        (ValueError, lambda m: m.DenseCRF2D(-3, H, K)),
        (TypeError, lambda m: m.DenseCRF2D("9", H, K)),
    ],
    "h": [(ValueError, lambda m: m.DenseCRF2D(W, 0, K))],
    "nlabels": [(ValueError, lambda m: m.DenseCRF2D(W, H, 0))],
    "device": [
        (ValueError, lambda m: m.DenseCRF2D(W, H, K, device="mps")),
        (ValueError, lambda m: m.DenseCRF2D(W, H, K, device="meta")),
    ],
    "u": [
        (TypeError, after(lambda m, d: d.setUnary(U))),
        (TypeError, after(lambda m, d: d.setUnary(None))),
        (TypeError, after(lambda m, d: d.setUnaryEnergy(None))),
        (TypeError, after(lambda m, d: d.setUnaryEnergy("abc"))),
        (TypeError, after(lambda m, d: d.setUnaryEnergy(U.astype(np.complex64)))),
        (TypeError, after(lambda m, d: d.setUnaryEnergy(torch.zeros(K, N, dtype=torch.cfloat)))),
        (ValueError, after(lambda m, d: d.setUnaryEnergy(U.reshape(K, H, W)))),
        (ValueError, after(lambda m, d: d.setUnaryEnergy(U[:2]))),
        (ValueError, after(lambda m, d: d.setUnaryEnergy([[1, 2], [3]]))),
        (ValueError, after(lambda m, d: d.setUnaryEnergy(np.full((K, N), NAN)))),
        (ValueError, after(lambda m, d: d.setUnaryEnergy(np.full((K, N), np.inf)))),
        (ValueError, after(lambda m, d: d.setUnaryEnergy(np.full((K, N), -np.inf)))),
        (ValueError, after(lambda m, d: d.setUnary(m.ConstUnary(U[:, :5])))),
        (TypeError, lambda m: m.ConstUnary(None)),
        (ValueError, lambda m: m.ConstUnary(U[0])),
    ],
    "f": [
        (ValueError, lambda m: m.LogisticUnary(MATRIX, U[:2])),
        (TypeError, lambda m: m.LogisticUnary(MATRIX, None)),
    ],
    "Q": [
        (TypeError, lambda m: crf(m, compat=3).klDivergence(None)),
        (TypeError, lambda m: crf(m, compat=3).klDivergence(U.tolist())),
        (TypeError, lambda m: crf(m, compat=3).stepInference(U.tolist(), None, None)),
        (ValueError, lambda m: crf(m, compat=3).klDivergence(U[:2])),
        (ValueError, lambda m: crf(m, compat=3).stepInference(U[:, :5], None, None)),
        (TypeError, lambda m: crf(m, compat=3).stepInference(U.astype(int), None, None)),
        (ValueError, lambda m: crf(m, compat=3).stepInference(read_only(U), None, None)),
    ],
    "sxy": [
        (TypeError, gaussian(None, 3)),
        (TypeError, gaussian("34", 3)),
        (TypeError, gaussian(b"34", 3)),
        (TypeError, gaussian(("3", "4"), 3)),
        (TypeError, gaussian(3 + 0j, 3)),
        (TypeError, gaussian(np.array([[3, 4]]), 3)),
        (ValueError, gaussian((3,), 3)),
        (ValueError, gaussian(0, 3)),
        (ValueError, gaussian((3, 0), 3)),
        (ValueError, gaussian(np.nan, 3)),
        (ValueError, gaussian(1e-6, 3)),
        (ValueError, gaussian(torch.tensor([3.0]), 3)),
        (ValueError, gaussian(torch.ones(2, 2), 3)),
    ],
    "srgb": [
        (ValueError, bilateral(40, (20, 10), IMAGE, 4)),
        (ValueError, bilateral(40, 0, IMAGE, 4)),
        (TypeError, bilateral(40, None, IMAGE, 4)),
    ],
    "sxy and srgb": [(ValueError, bilateral(40, 1e-3, IMAGE, 4))],
    "rgbim": [
        (TypeError, bilateral(40, 20, None, 4)),
        (TypeError, bilateral(40, 20, IMAGE.tobytes(), 4)),
        (ValueError, bilateral(40, 20, IMAGE[..., 0], 4)),
        (ValueError, bilateral(40, 20, IMAGE[..., :1], 4)),
        (ValueError, bilateral(40, 20, np.concatenate([IMAGE, IMAGE], 2), 4)),
        (ValueError, bilateral(40, 20, IMAGE.transpose(1, 0, 2), 4)),
        (ValueError, bilateral(40, 20, np.full((H, W, 3), NAN), 4)),
    ],
    "features": [
        (ValueError, energy(FEATURES[0], 3)),
        (ValueError, energy(FEATURES[:, :-1], 3)),
        (ValueError, energy(FEATURES.T, 3)),
        (ValueError, energy(np.zeros((0, N)), 3)),
        (ValueError, energy(np.full((2, N), NAN), 3)),
        (ValueError, energy(FEATURES * 1e9, 3)),
    ],
    "compat": [
        (TypeError, gaussian(3, None)),
        (TypeError, gaussian(3, "3")),
        (TypeError, gaussian(3, {"a": 1})),
        (TypeError, gaussian(3, [Fraction(1)] * K)),
        (TypeError, gaussian(3, 3 + 0j)),
        (ValueError, gaussian(3, np.nan)),
        (ValueError, gaussian(3, np.inf)),
        (ValueError, gaussian(3, 1e39)),
        (ValueError, gaussian(3, -1e38)),  # marginals would be NaN
        (ValueError, gaussian(3, np.float32([0, 1e38, 0]))),
        (ValueError, gaussian(3, [1.0, np.nan, 2.0])),
        (ValueError, gaussian(3, np.float32([2.5]))),
        (ValueError, gaussian(3, DIAGONAL[:2])),
        (ValueError, gaussian(3, np.ones((K, 2)))),
        (ValueError, gaussian(3, np.zeros((0, 0)))),
        (ValueError, gaussian(3, np.ones((K, K, K)))),
        (ValueError, gaussian(3, [[1, 2], [3]])),
    ],
    "kernel": [
        (ValueError, gaussian(3, 3, 7)),
        (TypeError, gaussian(3, 3, None)),
        (TypeError, gaussian(3, 3, "DIAG_KERNEL")),
    ],
    "normalization": [
        (ValueError, gaussian(3, 3, normalization=7)),
        (ValueError, gaussian(3, 3, normalization=-1)),
    ],
    "arr": [
        (TypeError, of("matrixXf", None)),
        (ValueError, of("matrixXf", np.zeros((3, 3, 3)))),
        (ValueError, of("vectorXf", np.zeros((3, 3)))),
    ],
    "labels": [
        (TypeError, labelled(LABELS + 0.5)),
        (TypeError, labelled(np.where(LABELS == 1, np.nan, LABELS))),
        (TypeError, labelled([1, 2, 2.5])),
        (TypeError, labelled(LABELS + 0j)),
        (TypeError, labelled(None)),
        (ValueError, labelled(LABELS, 2)),
        (ValueError, labelled(LABELS - 1)),
        (ValueError, labelled(np.array([0, 255]), zero_unsure=False)),
    ],
    "n_labels": [(ValueError, labelled(LABELS * 0, 0)), (TypeError, labelled(LABELS, None))],
    "gt_prob": [
        (ValueError, labelled(LABELS, gt_prob=1)),
        (ValueError, labelled(LABELS, gt_prob=0)),
        (ValueError, labelled(LABELS, gt_prob=np.nan)),
        (TypeError, labelled(LABELS, gt_prob=None)),
    ],
    "sm": [
        (ValueError, of("unary_from_softmax", np.array(0.5))),
        (ValueError, of("unary_from_softmax", np.zeros((0, 3)))),
        (TypeError, of("unary_from_softmax", None)),
        (TypeError, of("unary_from_softmax", torch.zeros(2, 3, dtype=torch.cfloat))),
    ],
    "scale": [
        (ValueError, of("unary_from_softmax", SOFTMAX, 0)),
        (ValueError, of("unary_from_softmax", SOFTMAX, 1.5)),
        (ValueError, of("unary_from_softmax", SOFTMAX, np.nan)),
        (TypeError, of("unary_from_softmax", SOFTMAX, "1")),
    ],
    "clip": [
        (ValueError, of("unary_from_softmax", SOFTMAX, clip=np.nan)),
        (TypeError, of("unary_from_softmax", SOFTMAX, clip="1")),
    ],
    "sdims": [
        (ValueError, of("create_pairwise_gaussian", (2,), (5, 6))),
        (ValueError, of("create_pairwise_gaussian", (2, 3, 4), (5, 6))),
        (ValueError, of("create_pairwise_gaussian", (0, 3), (5, 6))),
        (TypeError, of("create_pairwise_gaussian", ("2", 3), (5, 6))),
        (ValueError, of("create_pairwise_bilateral", (1, 2, 3), 0.1, IMAGE, 2)),
    ],
    "shape": [
        (TypeError, of("create_pairwise_gaussian", (2, 3), 5)),
        (TypeError, of("create_pairwise_gaussian", (2, 3), None)),
        (TypeError, of("create_pairwise_gaussian", (), ())),
        (ValueError, of("create_pairwise_gaussian", (2, 3), (-1, 6))),
    ],
    "schan": [
        (ValueError, of("create_pairwise_bilateral", (1, 2), (1, 2, 3, 4), IMAGE, 2)),
        (ValueError, of("create_pairwise_bilateral", (1, 2), 0, IMAGE, 2)),
        (TypeError, of("create_pairwise_bilateral", (1, 2), None, IMAGE, 2)),
    ],
    "chdim": [
        (ValueError, of("create_pairwise_bilateral", (1, 2), 0.1, IMAGE, 3)),
        (ValueError, of("create_pairwise_bilateral", (1, 2), 0.1, IMAGE, -4)),
        (TypeError, of("create_pairwise_bilateral", (1, 2), 0.1, IMAGE, None)),
    ],
    "img": [
        (TypeError, of("create_pairwise_bilateral", (1, 2), 0.1, None, 2)),
        (ValueError, of("create_pairwise_bilateral", (), 0.1, np.array(7.0))),
    ],
}


@pytest.mark.parametrize("argument", REFUSED)
def test_refusals_name_the_argument(argument: str) -> None:
    for kind, call in REFUSED[argument]:
        with pytest.raises(kind, match=rf"^{argument}:"):
            call(OURS)


def test_refusals_say_what_must_be() -> None:
    with pytest.raises(ValueError, match=rf"u: got shape \[2, {N}\], must be \[{K}, {N}\]"):
        crf(OURS).setUnaryEnergy(U[:2])
    with pytest.raises(ValueError, match=rf"got shape \[2, 5\], must be \[any, {N}\]"):
        crf(OURS).addPairwiseEnergy(FEATURES[:, :5], 3)
    with pytest.raises(ValueError, match=rf"features: got shape \[0, {N}\]"):
        crf(OURS).addPairwiseEnergy(FEATURES[:0], 3)
    OURS.DenseCRF(2**31 - 1, 1)


def test_images_in_other_units_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floating-point ones, which pydensecrf refuses; uint8 of 0 and 1 are taken as there."""
    monkeypatch.setattr(_image_checks, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bilateral(40, 20, (IMAGE > 128).astype(np.uint8), 4)(OURS)
        bilateral(40, 0.1, IMAGE / 255, 4)(OURS)
        bilateral(40, 20, IMAGE.astype(np.float64), 4)(OURS)
    for image in (IMAGE / 255, torch.from_numpy(IMAGE / 255)):
        monkeypatch.setattr(_image_checks, "_warned", set())
        with pytest.warns(UserWarning, match=r"rgbim: got values within 0\.\.1, while srgb = 20"):
            bilateral(40, (30, 20, 25), image, 4)(OURS)
    monkeypatch.setattr(_image_checks, "_warned", set())
    with pytest.warns(UserWarning, match=r"while srgb = 20"):
        bilateral(40, -20, IMAGE / 255, 4)(OURS)


def test_unknown_keywords_are_refused() -> None:
    """Misspelt ones are ignored there."""
    with pytest.raises(TypeError, match="devcie"):
        ours.DenseCRF2D(W, H, K, devcie="cuda")
