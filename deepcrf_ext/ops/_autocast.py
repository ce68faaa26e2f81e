"""What `torch.autocast` does to operators: what it does to matrix products.

Factored potentials are computed in the autocast dtype, float64 stays float64, and probabilities
and losses come out in float32, as those of `torch.softmax` and `cross_entropy` do there. The
energies of a table are no product yet to be computed: they are read in the dtype that they have.
"""

from __future__ import annotations

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products under the autocast of this device; None where there is none."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that kernels sum in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def result_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of the losses or probabilities of inputs in `dtype`."""
    return dtype if autocast_dtype(device) is None else accumulate_dtype(dtype)
