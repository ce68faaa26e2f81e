"""The matrices of pydensecrf.eigen: here NumPy arrays, which can do all that those can."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deepcrf_ext.pydensecrf._arguments import Array, as_tensor


def vectorXf(arr: ArrayLike) -> Array:
    """A copy of a vector, float32 [n]."""
    return as_tensor("arr", arr, (-1,)).numpy()


def matrixXf(arr: ArrayLike) -> Array:
    """A copy of a matrix, float32 [m, n]."""
    return as_tensor("arr", arr, (-1, -1)).numpy()


def VectorXf() -> Array:
    """An empty vector."""
    return np.empty(0, np.float32)


def MatrixXf() -> Array:
    """An empty matrix, such as a buffer of `DenseCRF.stepInference`."""
    return np.empty((0, 0), np.float32)
