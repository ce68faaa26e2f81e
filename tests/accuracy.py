"""How exact an operator must be."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def assert_accurate(
    actual: dict[str, Tensor],
    same_precision: dict[str, Tensor],
    exact: dict[str, Tensor],
    tolerance: float | None = None,
) -> None:
    """Check results by name against the float64 reference `exact`.

    The largest error may exceed that of plain PyTorch in the same precision by no more than the
    tolerance, by default that of the dtype, relative to the largest entry.
    """
    assert actual.keys() == exact.keys() == same_precision.keys()
    for name, result in actual.items():
        wanted, plain = exact[name], same_precision[name]
        assert result.shape == wanted.shape, name
        assert result.dtype == plain.dtype, name
        assert result.isfinite().all(), name
        scale = max(_largest(wanted), 1e-2)
        error, plain_error = _largest(result.cpu() - wanted), _largest(plain.cpu() - wanted)
        limit = plain_error + (tolerance or TOLERANCE[plain.dtype]) * scale
        assert error <= limit, f"{name}: error {error:.3e} above {limit:.3e} at scale {scale:.3e}"


def assert_close(actual: Tensor, wanted: Tensor) -> None:
    """Check equality up to rounding of the dtype, relative to the largest entry."""
    assert actual.shape == wanted.shape
    difference = _largest(actual.double() - wanted.double())
    assert difference <= TOLERANCE[actual.dtype] * max(_largest(wanted), 1e-2)


def _largest(tensor: Tensor) -> float:
    """The largest magnitude, 0 of nothing."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0
