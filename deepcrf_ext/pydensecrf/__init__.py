"""The interface of pydensecrf on this package's dense CRF: existing scripts change their imports.

    import deepcrf_ext.pydensecrf.densecrf as dcrf                   # was: pydensecrf.densecrf
    from deepcrf_ext.pydensecrf.utils import unary_from_softmax      # was: pydensecrf.utils

Every name is also found here (`import deepcrf_ext.pydensecrf as dcrf`). Scripts that cannot be
changed run under `python -m deepcrf_ext.pydensecrf SCRIPT ARGUMENTS` (or `-m MODULE ARGUMENTS`),
and what they depend on finds this package after `install()`.

Energies, features, kernels, compatibilities (a number w is Potts, -w on the diagonal; an array [K]
a diagonal; an array [K, K], made symmetric) and normalisations mean what they mean there, and
marginals agree to rounding. Its calls give the same here, with one difference: arrays of any dtype
and layout are taken, as are tensors, lists and read-only arrays, not only contiguous float32 (for
images uint8). What is undefined there is an error here that names the argument: NaN and infinity, a
width or size of 0, features or compatibilities so large that arithmetic overflows, a compatibility
of the wrong size, a label out of range (as -1, which is the last one there), less than 0
iterations, a keyword that is unknown. Errors are TypeError and ValueError. A
`Unary` can be set more than once, `kernel` is checked and otherwise ignored, as it changes nothing
without learning the features' scale, and arrays are returned where there are Eigen matrices.

New are:

- `DenseCRF(..., device="cuda")` and `DenseCRF2D(..., device="cuda")`, which work on a GPU and still
  return NumPy arrays;
- gradients: where a unary, features, an image, widths or a compatibility is a tensor that requires
  a gradient, `inference` returns a tensor on the device, differentiable in it.

>>> import numpy as np
>>> import deepcrf_ext.pydensecrf as dcrf
>>> image = np.zeros((24, 32, 3), np.uint8)
>>> image[:, 16:] = 200
>>> labels = (image[..., 0] > 0).astype(np.uint8)
>>> labels[5, 5] = 1  # noise
>>> crf = dcrf.DenseCRF2D(32, 24, 2)  # width, height, labels
>>> crf.setUnaryEnergy(dcrf.unary_from_labels(labels, 2, gt_prob=0.7, zero_unsure=False))
>>> crf.addPairwiseGaussian(sxy=3, compat=3)
>>> crf.addPairwiseBilateral(sxy=30, srgb=13, rgbim=image, compat=10)
>>> marginals = np.asarray(crf.inference(5))
>>> marginals.shape, marginals.argmax(0).reshape(24, 32)[5, 5].item()
((2, 768), 0)
"""

from __future__ import annotations

import os
import sys

import torch

from deepcrf_ext.pydensecrf import densecrf, eigen, utils
from deepcrf_ext.pydensecrf.densecrf import (
    CONST_KERNEL,
    DIAG_KERNEL,
    FULL_KERNEL,
    NO_NORMALIZATION,
    NORMALIZE_AFTER,
    NORMALIZE_BEFORE,
    NORMALIZE_SYMMETRIC,
    ConstUnary,
    DenseCRF,
    DenseCRF2D,
    KernelType,
    LogisticUnary,
    NormalizationType,
    Unary,
)
from deepcrf_ext.pydensecrf.utils import (
    compute_unary,
    create_pairwise_bilateral,
    create_pairwise_gaussian,
    softmax_to_unary,
    unary_from_labels,
    unary_from_softmax,
)

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "install",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]

DEVICE_VARIABLE = "DEEPCRF_PYDENSECRF_DEVICE"
"""The environment variable by which processes get the device of `install`."""


def install(*, device: str | torch.device | None = None, replace: bool = False) -> None:
    """Let `import pydensecrf.densecrf` and `pydensecrf.utils` find this package.

    In this process, and in those that it starts from now on: `sys.path` and the environment's
    PYTHONPATH get a folder for them. Calling it again changes nothing. Modules that have imported
    pydensecrf itself keep it.

    Args:
        device: where CRFs work that name no device: "cpu", "cuda", "cuda:1". None changes nothing.
        replace: whether to take the place of pydensecrf where it is imported already.

    Raises:
        RuntimeError: pydensecrf itself is imported already, and `replace` is False.
        ValueError: the device is not here.
    """
    modules = {
        "pydensecrf": sys.modules[__name__],
        "pydensecrf.densecrf": densecrf,
        "pydensecrf.eigen": eigen,
        "pydensecrf.utils": utils,
    }
    for name, module in modules.items():
        present = sys.modules.get(name, module)
        if present is not module and not replace:
            raise RuntimeError(
                f"{name} is imported already, from {getattr(present, '__file__', 'elsewhere')}; "
                "call install() before, or install(replace=True)"
            )
    if device is not None:
        densecrf.set_default_device(device)
        os.environ[DEVICE_VARIABLE] = str(device)
    sys.modules.update(modules)
    # Processes that are spawned begin anew, with these paths; others, with this environment.
    folder = os.path.join(os.path.dirname(__file__), "processes")
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, inherited)])
    if folder not in sys.path:
        sys.path.insert(1, folder)
