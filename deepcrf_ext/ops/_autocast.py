"""What `torch.autocast` does to operators: what it does to matrix products.

Factored potentials are computed in the autocast dtype, float64 stays float64, and probabilities
and losses come out in float32, as those of `torch.softmax` and `cross_entropy` do there. Tables
are not products yet to be computed: they are read in the dtype that they have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcrf_ext.ops.potentials import FactoredPotential, Potential


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products under the autocast of this device; None where there is none."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def lowered(tensor: Tensor) -> Tensor:
    """The tensor as a matrix product would read it."""
    dtype = autocast_dtype(tensor.device)
    if dtype is None or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)


def lowered_potential(potential: Potential) -> Potential:
    """The potential as the operators read it."""
    dtype = autocast_dtype(potential.device)
    if dtype in (None, potential.dtype) or not isinstance(potential, FactoredPotential):
        return potential
    tensors = (potential.source, potential.target, potential.weight, potential.bias)
    return FactoredPotential(potential.graph, *(lowered(tensor) for tensor in tensors))
