"""Calls of pydensecrf's interface as functions of a module that has it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from deepcrf_ext import pydensecrf as ours

W, H, K = 9, 7, 3
N = W * H

Calls = dict[str, Callable[[Any], Any]]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


U = random(K, N)
IMAGE = np.random.default_rng(1).integers(0, 255, (H, W, 3), dtype=np.uint8)
FEATURES = 3 * random(2, N, seed=2)
LABELS = np.random.default_rng(3).integers(0, K + 1, (H, W))
VOLUME = random(4, 5, 6, 2, seed=4)
SOFTMAX = np.random.default_rng(5).dirichlet(np.ones(K), (H, W)).transpose(2, 0, 1)
MATRIX = random(K, K, seed=6)
DIAGONAL = np.array([-1, -2, -3], np.float32)


OURS: Any = SimpleNamespace(**{**vars(ours.utils), **vars(ours.eigen), **vars(ours.densecrf)})


def crf(module: Any, **pairwise: Any) -> Any:
    """A CRF with a unary and, where arguments of it are given, a Gaussian."""
    d = module.DenseCRF2D(W, H, K)
    d.setUnaryEnergy(U)
    if pairwise:
        d.addPairwiseGaussian(**{"sxy": 3, "compat": 3, **pairwise})
    return d


def after(function: Callable[[Any, Any], Any], iterations: Any = 2) -> Callable[[Any], Any]:
    """The marginals after `function(module, crf)` has changed a CRF."""

    def call(module: Any) -> Any:
        d = crf(module)
        function(module, d)
        return d.inference(iterations)

    return call


def gaussian(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return after(lambda m, d: d.addPairwiseGaussian(*args, **kwargs))


def bilateral(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return after(lambda m, d: d.addPairwiseBilateral(*args, **kwargs))


def energy(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return after(lambda m, d: d.addPairwiseEnergy(*args, **kwargs))


def of(name: str, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    """A function of utils or eigen."""
    return lambda m: getattr(m, name)(*args, **kwargs)


def stepped(module: Any, steps: int, d: Any = None) -> Any:
    d = crf(module, compat=3) if d is None else d
    Q, tmp1, tmp2 = d.startInference()
    for _ in range(steps):
        d.stepInference(Q, tmp1, tmp2)
    return d, Q


def without_unary(module: Any) -> Any:
    d = module.DenseCRF(N, K)
    d.addPairwiseEnergy(FEATURES, 3)
    return d


def few_points(count: int, seed: int) -> Callable[[Any], Any]:
    """Points near the origin, where the filter has further ones if they are no multiple of four."""
    rng = np.random.default_rng(seed)
    features = 0.8 + 3 * rng.random((2, count), np.float32)
    energies = rng.random((K, count), np.float32)

    def call(module: Any) -> Any:
        d = module.DenseCRF(count, K)
        d.setUnaryEnergy(energies)
        d.addPairwiseEnergy(features, 3)
        return d.inference(2)

    return call


def changed_later(module: Any, taken: Callable[[np.ndarray], Any] = np.asarray) -> Any:
    """Arrays are copied: what is done to them later changes nothing.

    taken: what the calls are given of an array, with its memory.
    """
    u, image, features, compat = U.copy(), IMAGE.copy(), FEATURES.copy(), DIAGONAL.copy()
    d = module.DenseCRF2D(W, H, K)
    d.setUnaryEnergy(taken(u))
    d.addPairwiseBilateral(40, 20, taken(image), 4)
    d.addPairwiseEnergy(taken(features), taken(compat))
    for array in (u, image, features, compat):
        array[:] = 0
    return d.inference(2)
