"""Call by call beside pydensecrf: the same result."""

from __future__ import annotations

from decimal import Decimal
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
    VOLUME,
    Calls,
    H,
    K,
    N,
    U,
    W,
    after,
    bilateral,
    changed_later,
    crf,
    energy,
    few_points,
    gaussian,
    of,
    random,
    stepped,
    without_unary,
)

from deepcrf_ext import pydensecrf as ours

SAME: Calls = {
    # inference
    "inference(2.0)": lambda m: crf(m, compat=3).inference(2.0),
    "inference(2.7)": lambda m: crf(m, compat=3).inference(2.7),
    "inference(np.int64)": lambda m: crf(m, compat=3).inference(np.int64(3)),
    "inference(np.float32)": lambda m: crf(m, compat=3).inference(np.float32(3)),
    "inference(0-d array)": lambda m: crf(m, compat=3).inference(np.array(2)),
    "inference(0-d tensor)": lambda m: crf(m, compat=3).inference(torch.tensor(2)),
    "inference(True)": lambda m: crf(m, compat=3).inference(True),
    "inference(0)": lambda m: crf(m, compat=3).inference(0),
    "inference twice": lambda m: [d := crf(m, compat=3), d.inference(3), d.inference(2)][-1],
    "inference without pairwise": lambda m: crf(m).inference(3),
    "inference without unary": lambda m: without_unary(m).inference(2),
    "a kernel after inference": lambda m: [
        d := crf(m, compat=3),
        d.inference(1),
        d.addPairwiseGaussian(2, 1),
        d.inference(2),
    ][-1],
    # steps
    "startInference": lambda m: stepped(m, 0)[1],
    "buffers of startInference": lambda m: [
        np.asarray(buffer).shape for buffer in crf(m).startInference()[1:]
    ],
    "startInference without unary": lambda m: stepped(m, 0, without_unary(m))[1],
    "stepInference": lambda m: stepped(m, 1)[1],
    "stepInference twice": lambda m: stepped(m, 2)[1],
    "stepInference without unary": lambda m: stepped(m, 1, without_unary(m))[1],
    "stepInference without pairwise": lambda m: stepped(m, 1, crf(m))[1],
    "stepInference of keywords": lambda m: [
        d := crf(m, compat=3),
        Q := d.startInference()[0],
        d.stepInference(Q=Q, tmp1=m.MatrixXf(), tmp2=m.MatrixXf()),
        Q,
    ][-1],
    "klDivergence": lambda m: [pair := stepped(m, 3), pair[0].klDivergence(pair[1])][-1],
    "klDivergence of inference": lambda m: [
        d := crf(m, compat=3),
        d.klDivergence(d.inference(2)),
    ][-1],
    "klDivergence without unary": lambda m: [
        pair := stepped(m, 0, without_unary(m)),
        pair[0].klDivergence(pair[1]),
    ][-1],
    "argmax": lambda m: np.argmax(crf(m, compat=3).inference(2), axis=0),
    # unaries
    "setUnaryEnergy(u, None)": after(lambda m, d: d.setUnaryEnergy(U * 2, None)),
    "setUnaryEnergy(u, f=None)": after(lambda m, d: d.setUnaryEnergy(u=U * 2, f=None)),
    "setUnaryEnergy(u, f)": after(lambda m, d: d.setUnaryEnergy(U, random(N, N, seed=8) / N)),
    "setUnaryEnergy(+inf)": after(
        lambda m, d: d.setUnaryEnergy(np.where(np.arange(K)[:, None] == 1, np.float32(np.inf), U))
    ),
    "setUnaryEnergy(huge)": after(lambda m, d: d.setUnaryEnergy(U * np.float32(1e30))),
    "setUnary(ConstUnary)": after(lambda m, d: d.setUnary(m.ConstUnary(u=U * 2))),
    "setUnary(LogisticUnary)": after(
        lambda m, d: d.setUnary(m.LogisticUnary(L=random(K, 2), f=random(2, N)))
    ),
    "setUnary(Unary())": after(lambda m, d: d.setUnary(m.Unary())),
    "ConstUnary is a Unary": lambda m: isinstance(m.ConstUnary(U), m.Unary),
    "LogisticUnary is a Unary": lambda m: isinstance(m.LogisticUnary(U, random(N, 2)), m.Unary),
    "arrays are copied": changed_later,
    # positions
    "sxy of a pair": gaussian((3, 4), 3),
    "sxy of a list": gaussian([3, 4], 3),
    "sxy of an array": gaussian(np.array([3, 4]), 3),
    "sxy of three": gaussian((3, 4, 5), 3),
    "sxy of a mapping": gaussian({0: 3, 1: 4}, 3),
    "sxy of np.float32": gaussian(np.float32(3), 3),
    "sxy of np.int64": gaussian(np.int64(3), 3),
    "sxy of Fraction": gaussian(Fraction(7, 2), 3),
    "sxy of Decimal": gaussian(Decimal("3.5"), 3),
    "sxy of True": gaussian(True, 3),
    "sxy below 0": gaussian(-3, 3),
    "sxy of inf": gaussian(np.inf, 3),
    "sxy large": gaussian(1e6, 3),
    # compatibilities
    "compat of 0": gaussian(3, 0),
    "compat below 0": gaussian(3, -3),
    "compat of True": gaussian(3, True),
    "compat huge": gaussian(3, 1e30),
    "compat of np.float64": gaussian(3, np.float64(2.5)),
    "compat of np.float16": gaussian(3, np.float16(2.5)),
    "compat of np.int64": gaussian(3, np.int64(2)),
    "compat of Fraction": gaussian(3, Fraction(5, 2)),
    "compat of Decimal": gaussian(3, Decimal("2.5")),
    "compat of a diagonal": gaussian(3, DIAGONAL),
    "compat of a buffer": gaussian(3, memoryview(DIAGONAL)),
    "compat of a matrix": gaussian(3, MATRIX),
    "compat of the identity": gaussian(3, np.eye(K, dtype=np.float32)),
    # kernels and normalisations, by name and by number
    **{
        f"{kernel} {normalization}": (
            lambda m, kernel=kernel, normalization=normalization: gaussian(
                3, MATRIX, getattr(m, kernel), getattr(m, normalization)
            )(m)
        )
        for kernel in ("CONST_KERNEL", "DIAG_KERNEL", "FULL_KERNEL")
        for normalization in (
            "NO_NORMALIZATION",
            "NORMALIZE_BEFORE",
            "NORMALIZE_AFTER",
            "NORMALIZE_SYMMETRIC",
        )
    },
    "kernel of a number": gaussian(3, 3, 2),
    "kernel of a float": gaussian(3, 3, 1.0, 3.0),
    "kernel of np.int64": gaussian(3, 3, np.int64(1), np.int64(2)),
    "normalization of True": gaussian(3, 3, True, True),
    "members of the enumerations": lambda m: [
        (kind.name, int(kind)) for kind in (*m.KernelType, *m.NormalizationType)
    ],
    # images
    "bilateral": bilateral(40, 20, IMAGE, 4),
    "bilateral of sequences": bilateral((40, 30), [20, 10, 5], IMAGE, 4),
    "bilateral of arrays": bilateral(np.array([40, 30]), np.array([20, 10, 5.0]), IMAGE, 4),
    "bilateral of keywords": bilateral(sxy=40, srgb=20, rgbim=IMAGE, compat=4),
    "srgb of four": bilateral(40, (20, 10, 5, 3), IMAGE, 4),
    "srgb below 0": bilateral(40, -20, IMAGE, 4),
    "rgbim of booleans": bilateral(40, 20, IMAGE > 128, 4),
    # features
    "features": energy(FEATURES, 3),
    "features of keywords": energy(features=FEATURES, compat=3),
    "features of one dimension": energy(FEATURES[:1], 3),
    "features of any order": energy(FEATURES, DIAGONAL, 2, 2),
    **{f"{count} points": few_points(count, seed) for count in range(4, 12) for seed in range(3)},
    "features alone": lambda m: without_unary(m).inference(2),
    # constructors
    "floats": lambda m: m.DenseCRF2D(9.0, 7.9, 3.0).inference(1),
    "NumPy's integers": lambda m: m.DenseCRF(np.prod((H, W)), np.int32(K)).inference(1),
    "tensors": lambda m: m.DenseCRF2D(torch.tensor(W), H, K).inference(1),
    "keywords": lambda m: m.DenseCRF(nvar=N, nlabels=K).inference(1),
    "further arguments": lambda m: m.DenseCRF2D(W, H, K, 5, "x").inference(1),
    "one variable": lambda m: m.DenseCRF(1, K).inference(1),
    "one pixel": lambda m: m.DenseCRF2D(1, 1, K).inference(1),
    "one label": lambda m: [
        d := m.DenseCRF2D(W, H, 1),
        d.addPairwiseGaussian(3, 3),
        d.inference(2),
    ][-1],
    # eigen
    "vectorXf": lambda m: np.array(m.vectorXf(DIAGONAL)),
    "matrixXf": lambda m: np.array(m.matrixXf(MATRIX)),
    "MatrixXf": lambda m: np.array(m.MatrixXf()),
    "VectorXf": lambda m: np.array(m.VectorXf()),
    # unary_from_labels
    "labels": of("unary_from_labels", LABELS, K, 0.7),
    "two labels": of("unary_from_labels", LABELS % 3, 2, 0.7),
    "labels without unsure": of("unary_from_labels", LABELS, K + 1, 0.7, False),
    "labels of keywords": of(
        "unary_from_labels", labels=LABELS, n_labels=K + 1, gt_prob=0.7, zero_unsure=0
    ),
    "labels of NumPy's numbers": of("unary_from_labels", LABELS, np.int64(K), np.float64(0.7)),
    "labels in Fortran's order": of("unary_from_labels", np.asfortranarray(LABELS), K, 0.7),
    "labels transposed": of("unary_from_labels", LABELS.T, K, 0.7),
    "labels of int8": of("unary_from_labels", LABELS.astype(np.int8), K, 0.7),
    "labels of uint64": of("unary_from_labels", LABELS.astype(np.uint8) % 2 + 1, K, 0.7),
    "one label of a map": of("unary_from_labels", np.array(1), K, 0.7),
    "no labels": of("unary_from_labels", np.zeros(0, int), K, 0.7),
    "more labels than there are": of("unary_from_labels", LABELS, K + 2, 0.7),
    "compute_unary": of("compute_unary", LABELS, K),
    "compute_unary of keywords": of("compute_unary", LABELS, M=K, GT_PROB=0.8),
    # unary_from_softmax
    "softmax": of("unary_from_softmax", SOFTMAX),
    "softmax scaled": of("unary_from_softmax", SOFTMAX, 0.5),
    "softmax scaled, not clipped": of("unary_from_softmax", SOFTMAX, scale=0.5, clip=None),
    "softmax clipped": of("unary_from_softmax", SOFTMAX, clip=0.1),
    "softmax clipped at 0": of("unary_from_softmax", SOFTMAX, clip=0),
    "softmax clipped above 1": of("unary_from_softmax", SOFTMAX, clip=2),
    "softmax scaled by 1": of("unary_from_softmax", SOFTMAX, 1),
    "softmax of float32": of("unary_from_softmax", SOFTMAX.astype(np.float32), 0.7),
    "softmax of booleans": of("unary_from_softmax", SOFTMAX > 0.5),
    "softmax of integers": of("unary_from_softmax", (SOFTMAX > 0.5).astype(int)),
    "softmax of zeros": of("unary_from_softmax", SOFTMAX * 0),
    "softmax of zeros, not clipped": of("unary_from_softmax", SOFTMAX * 0, clip=None),
    "softmax outside of 0..1": of("unary_from_softmax", 3 * SOFTMAX - 1),
    "softmax of one axis": of("unary_from_softmax", SOFTMAX[:, 0, 0]),
    "softmax of four axes": of("unary_from_softmax", VOLUME),
    "softmax transposed": of("unary_from_softmax", SOFTMAX.transpose(0, 2, 1)),
    "softmax_to_unary": of("softmax_to_unary", SOFTMAX),
    "softmax_to_unary scaled": of("softmax_to_unary", SOFTMAX, GT_PROB=0.7),
    "softmax_to_unary of None": of("softmax_to_unary", SOFTMAX, None),
    "softmax_to_unary of zeros": of("softmax_to_unary", (SOFTMAX > 0.5).astype(float)),
    # features of positions
    "positions": of("create_pairwise_gaussian", (3, 4.5), (5, 6)),
    "positions of lists": of("create_pairwise_gaussian", [3, 4.5], [5, 6]),
    "positions of arrays": of("create_pairwise_gaussian", np.array([3, 4.5]), np.array([5, 6])),
    "positions of tensors": of("create_pairwise_gaussian", torch.tensor([3, 4.5]), (5, 6)),
    "positions of keywords": of("create_pairwise_gaussian", sdims=(3, 4), shape=(5, 6)),
    "positions in a shape of a generator": lambda m: m.create_pairwise_gaussian(
        (3, 4), (size for size in (5, 6))
    ),
    "positions on one axis": of("create_pairwise_gaussian", (3,), (5,)),
    "positions on axes of one": of("create_pairwise_gaussian", (3, 2), (1, 1)),
    "positions on three axes": of("create_pairwise_gaussian", (2, 3, 4), (5, 6, 7)),
    "positions of widths below 0": of("create_pairwise_gaussian", (-2, np.inf), (5, 6)),
    # features of positions and channels
    "channels": of("create_pairwise_bilateral", (10, 10), (1, 2, 3), IMAGE, chdim=2),
    "one schan for all": of("create_pairwise_bilateral", (10, 10), 0.01, IMAGE, chdim=2),
    "schan of np.float32": of("create_pairwise_bilateral", (9, 9), np.float32(2), IMAGE, 2),
    "schan of True": of("create_pairwise_bilateral", (9, 9), True, IMAGE, 2),
    "one schan of three": of("create_pairwise_bilateral", (10, 10), (0.01,), IMAGE, chdim=2),
    "two schan of three": of("create_pairwise_bilateral", (10, 10), (0.01, 0.02), IMAGE, chdim=2),
    "no schan of three": of("create_pairwise_bilateral", (10, 10), [], IMAGE, chdim=2),
    "one sdims of two": of("create_pairwise_bilateral", (10,), 0.1, IMAGE, chdim=2),
    "no sdims of two": of("create_pairwise_bilateral", (), 0.1, IMAGE, chdim=2),
    "an image without channels": of("create_pairwise_bilateral", (10, 5), 0.1, IMAGE[..., 0]),
    "widths of generators": lambda m: m.create_pairwise_bilateral(
        map(float, (10, 5)), {"r": 1, "g": 2.0, "b": 3}.values(), IMAGE, 2
    ),
    "channels taken for space": of("create_pairwise_bilateral", (10, 5), 0.1, IMAGE),
    "a volume": of("create_pairwise_bilateral", (1, 2, 3), (0.1, 0.2), VOLUME, 3),
    "a volume, one schan of two": of("create_pairwise_bilateral", (1, 2, 3), (0.1,), VOLUME, 3),
    "a volume, channels first": of("create_pairwise_bilateral", (1, 2), (0.1, 0.2), VOLUME, 0),
    "a volume, channels from behind": of("create_pairwise_bilateral", (1, 2, 3), 0.1, VOLUME, -2),
    "a volume of four axes": of("create_pairwise_bilateral", (1, 2, 3), 0.1, VOLUME, chdim=-1),
    "chdim of np.int64": of("create_pairwise_bilateral", (1, 2), 0.1, IMAGE, np.int64(2)),
    "an image of uint16": of("create_pairwise_bilateral", (1, 2), 9, IMAGE.astype(np.uint16), 2),
    "an image of float16": of("create_pairwise_bilateral", (1, 2), 9, IMAGE.astype(np.float16), 2),
    "an image of strides": of("create_pairwise_bilateral", (1, 2), 9, IMAGE[:, :, ::-1], 2),
    "a signal": of("create_pairwise_bilateral", (2,), 0.1, np.arange(7.0)),
    "a pixel": of("create_pairwise_bilateral", (), 0.1, np.arange(7.0), 0),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gives_the_same(theirs: Any, name: str) -> None:
    wanted, result = np.asarray(SAME[name](theirs)), np.asarray(SAME[name](OURS))
    assert result.dtype == wanted.dtype
    if wanted.dtype.kind in "fi":
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-4)
    else:
        assert np.array_equal(result, wanted)


TAKEN: Calls = {
    "float64": after(lambda m, d: d.setUnaryEnergy(U.astype(np.float64))),
    "big endian": after(lambda m, d: d.setUnaryEnergy(U.astype(">f4"))),
    "lists": after(lambda m, d: d.setUnaryEnergy(U.tolist())),
    "tensors": after(lambda m, d: d.setUnaryEnergy(torch.from_numpy(U))),
    "Fortran's order": after(lambda m, d: d.setUnaryEnergy(np.asfortranarray(U))),
    "strides": after(lambda m, d: d.setUnaryEnergy(np.repeat(U, 2, 1)[:, ::2])),
    "a unary set twice": after(lambda m, d: [d.setUnary(m.ConstUnary(U)) for _ in range(2)]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_takes_arrays_of_any_kind(name: str) -> None:
    """The one difference from pydensecrf, which refuses them."""
    np.testing.assert_allclose(TAKEN[name](OURS), crf(OURS).inference(2), atol=1e-6)


@pytest.mark.parametrize("width", [np.array(3.0), torch.tensor(3), torch.tensor([3.0, 3, 9])])
def test_takes_widths_of_any_kind(width: Any) -> None:
    np.testing.assert_array_equal(gaussian(width, 3)(OURS), gaussian(3, 3)(OURS))


@pytest.mark.parametrize("width", [3, np.array(3.0), torch.tensor(3)])
def test_takes_one_width_for_all_axes(width: Any) -> None:
    wanted = ours.create_pairwise_gaussian((3, 3), (5, 6))
    np.testing.assert_array_equal(ours.create_pairwise_gaussian(width, (5, 6)), wanted)


@pytest.mark.parametrize("width", [np.array(20.0), torch.tensor(20), torch.tensor([20.0] * 4)])
def test_takes_widths_of_colours_of_any_kind(width: Any) -> None:
    wanted = bilateral(40, 20, IMAGE, 4)(OURS)
    np.testing.assert_array_equal(bilateral(40, width, IMAGE, 4)(OURS), wanted)


def test_results_are_contiguous() -> None:
    """Of any number of variables, also of none that is a multiple of four."""
    assert N % 4
    assert crf(OURS, compat=3).inference(2).flags.c_contiguous
    assert crf(OURS, compat=3).startInference()[0].flags.c_contiguous


def test_tensors_are_copied() -> None:
    wanted = changed_later(OURS)
    np.testing.assert_array_equal(changed_later(OURS, torch.from_numpy), wanted)


def test_read_only_arrays() -> None:
    image = IMAGE.copy()
    image.flags.writeable = False
    np.testing.assert_array_equal(
        bilateral(40, 20, image, 4)(OURS), bilateral(40, 20, IMAGE, 4)(OURS)
    )


def test_divergence_where_labels_are_forbidden() -> None:
    """A forbidden label, of marginal 0, adds nothing to it; NaN there."""
    divergences = []
    for energy_ in (1e4, np.inf):
        d = crf(OURS, compat=3)
        d.setUnaryEnergy(np.where(np.arange(N) % 4 == np.arange(K)[:, None], energy_, U))
        divergences.append(d.klDivergence(d.inference(3)))
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-6)
    assert np.isnan(d.klDivergence(np.full((K, N), np.nan, np.float32)))


def test_a_single_label() -> None:
    """A division by zero there."""
    energies = ours.unary_from_labels([0, 1, 1], 1, 0.7)
    np.testing.assert_allclose(energies, [[0, -np.log(0.7), -np.log(0.7)]], rtol=1e-6)


def test_labels_of_any_kind() -> None:
    wanted = ours.unary_from_labels(LABELS, K, 0.7)
    for labels in (LABELS.astype(np.uint8), LABELS.astype(float), LABELS.tolist()):
        np.testing.assert_array_equal(ours.unary_from_labels(labels, K, 0.7), wanted)
    tensor = torch.from_numpy(LABELS)
    np.testing.assert_array_equal(ours.unary_from_labels(tensor, K, 0.7), wanted)


def test_softmax_of_integers() -> None:
    integers = (SOFTMAX > 0.5).astype(int)
    energies = ours.unary_from_softmax(torch.from_numpy(integers))
    np.testing.assert_allclose(energies, ours.unary_from_softmax(integers), rtol=1e-6)


def test_softmax_of_half_precision_is_computed_in_single() -> None:
    half = SOFTMAX.astype(np.float16)
    wanted = -np.log(half.astype(np.float64).clip(1e-5, 1)).reshape(K, -1)
    for softmax in (half, torch.from_numpy(half)):
        np.testing.assert_allclose(ours.unary_from_softmax(softmax), wanted, rtol=1e-6, atol=1e-7)
    brain = torch.from_numpy(SOFTMAX).bfloat16()
    assert ours.unary_from_softmax(brain).dtype == np.float32


def test_softmax_of_double_precision_is_computed_in_double() -> None:
    sure = torch.tensor([[1 - 1e-9], [1e-9]], dtype=torch.float64)
    wanted = [[1e-9], [-np.log(1e-9)]]
    for softmax in (sure, sure.numpy(), sure.clone().requires_grad_()):
        energies = torch.as_tensor(ours.unary_from_softmax(softmax, clip=None)).detach()
        np.testing.assert_allclose(energies, wanted, rtol=1e-6)


@pytest.mark.parametrize("default", ["dtype", "device"])
def test_defaults_of_torch_do_not_matter(default: str) -> None:
    wanted = SAME["bilateral"](OURS), SAME["stepInference"](OURS), SAME["channels"](OURS)
    try:
        if default == "dtype":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        results = SAME["bilateral"](OURS), SAME["stepInference"](OURS), SAME["channels"](OURS)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for result, right in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(result, right)
