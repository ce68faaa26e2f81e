"""Checks of the arguments of the public functions, shared by the operators and the reference.

Every check names the argument, says what it was and what it must be. A wrong type or dtype is a
``TypeError``; a wrong shape, device or value is a ``ValueError``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.potentials import FactoredPotential, Potential, TablePotential
from deepcrf_ext.tensor_checks import check_device, check_dtype, check_floating, check_tensor

REDUCTIONS = ("mean", "sum", "none")


def check_potential(name: str, value: Any) -> None:
    """Check that ``value`` is one of the two pairwise potentials."""
    if not isinstance(value, (FactoredPotential, TablePotential)):
        raise TypeError(
            f"{name} must be a FactoredPotential or a TablePotential, got {type(value).__name__}"
        )


def check_marginals(marginals: Any, potential: Potential) -> None:
    """Check ``marginals`` [N, K] against the nodes, labels, dtype and device of ``potential``."""
    sizes = {"N": potential.graph.num_nodes, "K": potential.num_labels}
    check_tensor("marginals", marginals, "N K", sizes)
    check_dtype("marginals", marginals, potential.dtype, "the potential")
    check_device("marginals", marginals, potential.device, "the potential")


def check_unary(unary: Any, potentials: Any) -> None:
    """Check ``unary`` [N, K] and a possibly empty list or tuple of potentials on its N nodes."""
    sizes = {"N": unary.shape[0]} if isinstance(unary, Tensor) and unary.dim() == 2 else {}
    check_tensor("unary", unary, "N K", sizes)
    check_floating("unary", unary)
    if not isinstance(potentials, (list, tuple)):
        raise TypeError(
            f"potentials must be a list or tuple of potentials, got {type(potentials).__name__}"
        )
    for index, potential in enumerate(potentials):
        name = f"potentials[{index}]"
        check_potential(name, potential)
        if (potential.graph.num_nodes, potential.num_labels) != tuple(unary.shape):
            raise ValueError(
                f"{name} must have the nodes and labels of unary, {list(unary.shape)}, "
                f"got {[potential.graph.num_nodes, potential.num_labels]}"
            )
        if potential.dtype != unary.dtype:
            raise TypeError(
                f"{name} must have dtype {unary.dtype}, the dtype of unary, got {potential.dtype}"
            )
        if potential.device != unary.device:
            raise ValueError(
                f"{name} must be on {unary.device}, the device of unary, got {potential.device}"
            )


def check_iterations(iterations: Any) -> None:
    """Check that ``iterations`` is an int >= 0."""
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"iterations must be an int, got {type(iterations).__name__}")
    if iterations < 0:
        raise ValueError(f"iterations must be >= 0, got {iterations}")


def check_reduction(reduction: Any) -> None:
    """Check that ``reduction`` is one of ``REDUCTIONS``."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def checked_labels(
    labels: Any, num_nodes: int, num_labels: int, ignore_index: Any, device: torch.device
) -> Tensor:
    """Check ``labels`` [N] of any integer dtype and return them as int64.

    Every label must be ``ignore_index`` or lie in ``0..num_labels-1``. CPU labels are looked at
    at once. On other devices, and in compiled code, the check runs with the work and raises what
    ``torch.nn.functional.cross_entropy`` raises there: a ``RuntimeError`` or a device assertion.
    """
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    check_tensor("labels", labels, "N", {"N": num_nodes})
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must have an integer dtype, got {labels.dtype}")
    check_device("labels", labels, device, "the potentials or unary")
    labels = labels.to(torch.int64)
    bad = ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)
    rule = f"labels must be 0..{num_labels - 1} or ignore_index ({ignore_index})"
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        torch._assert_async(~bad.any(), rule)
    elif bad.any():
        node = int(bad.nonzero()[0])
        raise ValueError(f"{rule}, got {int(labels[node])} at node {node}")
    return labels
