"""What pydensecrf's own tests and examples do, with this package and with pydensecrf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from calls import OURS

Outcome = dict[str, Any]


def square() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [2, 100] that hint at a square, and an image [10, 10, 3] of it."""
    border = np.zeros((10, 10), np.float32)
    border[[0, -1]] = border[:, [0, -1]] = 1
    middle = np.zeros((10, 10), np.float32)
    middle[4:7, 4:7] = 1
    evidence = np.stack([border.ravel(), middle.ravel()]) + 1
    image = np.zeros((10, 10, 3), np.uint8)
    image[2:8, 2:8] = 255
    return evidence / evidence.sum(0), image


def by_class(module: Any) -> Outcome:
    """One problem by the class of images and by the class of points."""
    probabilities, image = square()
    grid, points = module.DenseCRF2D(10, 10, 2), module.DenseCRF(100, 2)
    features = module.create_pairwise_bilateral(sdims=(2, 2), schan=2, img=image, chdim=2)
    for crf in (grid, points):
        crf.setUnaryEnergy(-np.log(probabilities))
    grid.addPairwiseBilateral(sxy=2, srgb=2, rgbim=image, compat=3)
    points.addPairwiseEnergy(features, compat=3)
    results = [np.argmax(crf.inference(10), axis=0).reshape(10, 10) for crf in (grid, points)]
    assert np.array_equal(results[0], results[1])
    return {"labels": results[0]}


def annotation(module: Any, by_features: bool, unknown: bool) -> Outcome:
    """Colours that somebody painted over an image, spread over all of it, step by step too."""
    rng = np.random.default_rng(0)
    height, width = 30, 40
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, 20:] = (200, 120, 60)
    image += rng.integers(0, 20, image.shape, dtype=np.uint8)
    painted = np.zeros((height, width, 3), np.uint32)
    painted[:] = 0 if unknown else (0, 0, 255)
    painted[5:25, 3:15], painted[8:20, 25:38] = (0, 0, 255), (0, 255, 0)

    codes = painted[..., 0] + (painted[..., 1] << 8) + (painted[..., 2] << 16)
    colours, labels = np.unique(codes, return_inverse=True)
    colours = colours[1:] if unknown else colours
    unary = module.unary_from_labels(labels, len(colours), gt_prob=0.7, zero_unsure=unknown)
    settings = {"kernel": module.DIAG_KERNEL, "normalization": module.NORMALIZE_SYMMETRIC}
    if by_features:
        crf = module.DenseCRF(height * width, len(colours))
        crf.setUnaryEnergy(unary)
        features = module.create_pairwise_gaussian(sdims=(3, 3), shape=image.shape[:2])
        crf.addPairwiseEnergy(features, compat=3, **settings)
        features = module.create_pairwise_bilateral((80, 80), (13, 13, 13), img=image, chdim=2)
        crf.addPairwiseEnergy(features, compat=10, **settings)
    else:
        crf = module.DenseCRF2D(width, height, len(colours))
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=(3, 3), compat=3, **settings)
        crf.addPairwiseBilateral((80, 80), (13, 13, 13), rgbim=image, compat=10, **settings)
    Q, tmp1, tmp2 = crf.startInference()
    divergences = []
    for _ in range(5):
        divergences.append(crf.klDivergence(Q))
        crf.stepInference(Q, tmp1, tmp2)
    inferred = np.array(crf.inference(5))
    np.testing.assert_allclose(np.array(Q), inferred, atol=1e-4)
    return {"unary": unary, "marginals": inferred, "divergences": divergences}


def blob(height: int, width: int) -> np.ndarray:
    """Probabilities [2, height, width] between 0.4 and 0.6."""
    rows, columns = np.mgrid[:height, :width]
    distance = (rows - height // 2) ** 2 + (columns - width // 2) ** 2
    hill = np.exp(-distance / (2 * (height // 4) * (width // 4)))
    foreground = 0.5 + 0.2 * ((hill - hill.min()) / (hill.max() - hill.min()) - 0.5)
    return np.stack([foreground, 1 - foreground])


def other_channels(module: Any, channels: int, schan: Any) -> Outcome:
    """An image of another number of channels, over 75 steps; before that the unary alone."""
    height, width = 60, 76
    probabilities = blob(height, width)
    image = np.zeros((height, width, channels), np.uint8)
    image[height // 3 : 2 * height // 3, width // 4 : 3 * width // 4] = 1
    unary = module.unary_from_softmax(probabilities)
    crf = module.DenseCRF2D(width, height, 2)
    crf.setUnaryEnergy(unary)
    alone = np.argmax(crf.inference(10), axis=0)
    assert np.array_equal(alone.reshape(height, width), probabilities.argmax(0))
    with pytest.raises(ValueError, match="rgbim|RGB"):
        crf.addPairwiseBilateral(sxy=(10, 10), srgb=0.01, rgbim=image, compat=10)
    features = module.create_pairwise_bilateral((10, 10), schan, img=image, chdim=2)
    crf.addPairwiseEnergy(features, compat=10)
    Q, tmp1, tmp2 = crf.startInference()
    divergences, labels = [], []
    for steps in (5, 20, 50):
        for _ in range(steps):
            crf.stepInference(Q, tmp1, tmp2)
        divergences.append(crf.klDivergence(Q) / (height * width))
        labels.append(np.argmax(Q, axis=0))
    return {"features": features, "divergences": divergences, "labels": np.stack(labels)}


def volume(module: Any) -> Outcome:
    """Three axes; probabilities of another shape are refused before they can do harm."""
    rng = np.random.default_rng(1)
    shape = (9, 7, 8)
    probabilities = rng.random((5, *shape[:2]), np.float32)
    probabilities /= probabilities.sum(0)
    crf = module.DenseCRF(np.prod(shape), 5)
    with pytest.raises(ValueError, match="u: got shape|Bad shape"):
        crf.setUnaryEnergy(module.unary_from_softmax(probabilities))
    crf.setUnaryEnergy(module.unary_from_softmax(np.repeat(probabilities[..., None], 8, 3)))
    features = module.create_pairwise_gaussian(sdims=(1.0, 1.0, 1.0), shape=shape)
    crf.addPairwiseEnergy(
        features, compat=3, kernel=module.FULL_KERNEL, normalization=module.NORMALIZE_SYMMETRIC
    )
    return {"labels": np.argmax(crf.inference(5), axis=0).reshape(shape)}


def modalities(module: Any) -> Outcome:
    """A volume of two modalities, labels that differ in how ill they go together, point by point
    normalised before the filter."""
    rng = np.random.default_rng(2)
    shape = (8, 16, 12)
    images = rng.random((2, *shape), np.float32)
    probabilities = rng.dirichlet(np.ones(3), shape).transpose(3, 0, 1, 2)
    apart = np.float32([[0, 1, 3], [1, 0, 1], [3, 1, 0]])
    crf = module.DenseCRF(int(np.prod(shape)), 3)
    crf.setUnaryEnergy(module.unary_from_softmax(probabilities, scale=0.8))
    crf.addPairwiseEnergy(module.create_pairwise_gaussian((2, 2, 2), shape), compat=apart)
    features = module.create_pairwise_bilateral((4, 4, 4), (0.3, 0.4), images, chdim=0)
    crf.addPairwiseEnergy(features, compat=2 * apart, normalization=module.NORMALIZE_BEFORE)
    return {"features": features, "marginals": np.array(crf.inference(7))}


def points(module: Any) -> Outcome:
    """A cloud of points with normals, the kernel as it is."""
    rng = np.random.default_rng(3)
    features = np.concatenate([10 * rng.random((3, 2000)), rng.normal(size=(3, 2000))])
    crf = module.DenseCRF(2000, 8)
    crf.setUnaryEnergy(3 * rng.random((8, 2000), np.float32))
    crf.addPairwiseEnergy(
        features.astype(np.float32), 3.0, module.CONST_KERNEL, module.NO_NORMALIZATION
    )
    return {"marginals": np.array(crf.inference(5))}


def frames(module: Any) -> Outcome:
    """One CRF for several unaries; marginals that are edited through a view between two steps, and
    results that are changed in place, which changes nothing else."""
    rng = np.random.default_rng(4)
    height, width = 20, 30
    image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    crf = module.DenseCRF2D(width, height, 3)
    crf.addPairwiseGaussian(3, 3)
    crf.addPairwiseBilateral(20, 10, image, 5)
    marginals = []
    for _ in range(3):
        probabilities = rng.dirichlet(np.ones(3), (height, width)).transpose(2, 0, 1)
        crf.setUnaryEnergy(np.ascontiguousarray(module.unary_from_softmax(probabilities)))
        marginals.append(np.array(crf.inference(3)))
    Q, tmp1, tmp2 = crf.startInference()
    view = np.asarray(Q)
    view[:], view[2] = 0, 1
    crf.stepInference(Q, tmp1, tmp2)
    first = np.asarray(crf.inference(3))
    first[:] = 0
    return {"frames": marginals, "edited": np.array(Q), "last": np.array(crf.inference(3))}


def unary(module: Any) -> Outcome:
    """Energies of labels, 0 among them, which is unsure."""
    labels = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    energies = module.compute_unary(labels, 3, GT_PROB=0.8)
    right, wrong, unsure = 0.8, 0.1, 1 / 3
    table = [[wrong] * 3 for _ in range(4)]
    table[0] = [unsure] * 3
    for label in (1, 2, 3):
        table[label][label - 1] = right
    wanted = -np.log([table[label] for label in labels.ravel()]).T
    np.testing.assert_almost_equal(energies, wanted)
    return {"energies": energies}


def matrices(module: Any) -> Outcome:
    """Vectors and matrices there and back."""
    vector = np.array([0.5, -1, 2], np.float32)
    matrix = np.outer(vector, vector)
    outcome = {"vector": np.array(module.vectorXf(vector)), "m": np.array(module.matrixXf(matrix))}
    assert np.array_equal(outcome["vector"], vector)
    assert np.array_equal(outcome["m"], matrix)
    with pytest.raises(ValueError, match="shape|dimensions"):
        module.matrixXf(np.zeros((3, 3, 3), np.float32))
    with pytest.raises(TypeError):
        module.matrixXf(None)
    return outcome


EXAMPLES: dict[str, Callable[[Any], Outcome]] = {
    "by class": by_class,
    "annotation": lambda m: annotation(m, by_features=False, unknown=False),
    "annotation by features": lambda m: annotation(m, by_features=True, unknown=False),
    "annotation with unknown pixels": lambda m: annotation(m, by_features=True, unknown=True),
    "grey image": lambda m: other_channels(m, 1, (0.01,)),
    "four channels": lambda m: other_channels(m, 4, 0.01),
    "volume": volume,
    "modalities": modalities,
    "points": points,
    "frames": frames,
    "unary": unary,
    "matrices": matrices,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(theirs: Any, name: str) -> None:
    wanted, result = EXAMPLES[name](theirs), EXAMPLES[name](OURS)
    assert result.keys() == wanted.keys()
    for part, value in wanted.items():
        if np.asarray(value).dtype.kind == "i":
            assert (result[part] == value).mean() > 0.999, part
        else:
            np.testing.assert_allclose(result[part], value, rtol=1e-4, atol=1e-4, err_msg=part)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_without_pydensecrf(name: str) -> None:
    EXAMPLES[name](OURS)


def test_the_one_difference(theirs: Any) -> None:
    """Arrays that are not contiguous float32 are refused there, and taken here."""

    def labels(module: Any, dtype: Any) -> np.ndarray:
        crf = module.DenseCRF2D(10, 10, 2)
        crf.setUnaryEnergy(-np.log(square()[0]))
        crf.addPairwiseBilateral(
            (3, 3), (3, 3, 3), square()[1], compat=np.array([-1.0, -2.0], dtype)
        )
        return np.argmax(crf.inference(2), axis=0)

    with pytest.raises(ValueError, match="float"):
        labels(theirs, np.float64)
    with pytest.raises(ValueError, match="float"):
        theirs.matrixXf(np.zeros((3, 3)))
    assert np.array_equal(labels(OURS, np.float64), labels(theirs, np.float32))
    assert np.array_equal(OURS.matrixXf(np.eye(3)), np.eye(3))
