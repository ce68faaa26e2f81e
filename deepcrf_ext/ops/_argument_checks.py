"""Checks of the arguments of the public functions, shared by the operators and the reference.

Every check names the argument, says what it was and what it must be. A wrong type or dtype is a
`TypeError`; a wrong shape, device or value is a `ValueError`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from deepcrf_ext.ops._autocast import autocast_dtype
from deepcrf_ext.ops._func_transforms import without_transforms
from deepcrf_ext.ops._number_checks import checked_int
from deepcrf_ext.ops._tensor_checks import (
    are_seen,
    check_device,
    check_dtype,
    check_floating,
    check_integer,
    check_tensor,
    have_values,
)
from deepcrf_ext.ops.potentials import FactoredPotential, Potential, TablePotential

REDUCTIONS = ("mean", "sum", "none")


def check_potential(name: str, value: Any) -> None:
    """Check that `value` is one of the two pairwise potentials."""
    if not isinstance(value, (FactoredPotential, TablePotential)):
        raise TypeError(
            f"{name}: got {type(value).__name__}, must be a FactoredPotential or a TablePotential"
        )


def check_same_precision(
    name: str, dtype: torch.dtype, wanted: torch.dtype, owner: str, device: torch.device
) -> None:
    """Check that `name` has the dtype `wanted`; under autocast, that none or both are float64."""
    if autocast_dtype(device) is None or torch.float64 in (dtype, wanted):
        check_dtype(name, dtype, wanted, owner)


def check_marginals(marginals: Any, potential: Potential) -> None:
    """Check `marginals` [N, K] against the nodes, labels, dtype and device of `potential`."""
    sizes = {"N": potential.graph.num_nodes, "K": potential.num_labels}
    check_tensor("marginals", marginals, "N K", sizes)
    check_floating("marginals", marginals)
    device = potential.device
    check_same_precision("marginals", marginals.dtype, potential.dtype, "the potential", device)
    check_device("marginals", marginals.device, potential.device, "the potential")


def check_unary(unary: Any, potentials: Any) -> None:
    """Check `unary` [N, K] and a possibly empty list or tuple of potentials on its N nodes."""
    sizes = {"N": unary.shape[0]} if isinstance(unary, Tensor) and unary.dim() == 2 else {}
    check_tensor("unary", unary, "N K", sizes)
    check_floating("unary", unary)
    if not isinstance(potentials, (list, tuple)):
        raise TypeError(
            f"potentials: got {type(potentials).__name__}, must be a list or tuple of potentials"
        )
    for index, potential in enumerate(potentials):
        name = f"potentials[{index}]"
        check_potential(name, potential)
        if (potential.graph.num_nodes, potential.num_labels) != tuple(unary.shape):
            raise ValueError(
                f"{name}: got {potential.graph.num_nodes} nodes and {potential.num_labels} labels, "
                f"must be {unary.shape[0]} and {unary.shape[1]} as unary"
            )
        check_same_precision(name, potential.dtype, unary.dtype, "unary", unary.device)
        check_device(name, potential.device, unary.device, "unary")


def check_reduction(reduction: Any) -> None:
    """Check that `reduction` is one of `REDUCTIONS`."""
    if not (isinstance(reduction, str) and reduction in REDUCTIONS):
        raise ValueError(f"reduction: got {reduction!r}, must be one of {', '.join(REDUCTIONS)}")


def checked_labels(
    labels: Any, num_nodes: int, num_labels: int, ignore_index: Any, device: torch.device
) -> tuple[Tensor, int]:
    """Check `labels` [N] of any integer dtype; return them as int64, and `ignore_index` as an int.

    Every label must be `ignore_index` or lie in `0..num_labels-1`. CPU labels are looked at
    at once. On other devices, and in traced code, the check runs with the work and raises what
    `torch.nn.functional.cross_entropy` raises there: a `RuntimeError` or a device assertion.
    """
    ignore_index = checked_int("ignore_index", ignore_index)
    if not torch.compiler.is_compiling() and not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: got {ignore_index}, must be an integer of 64 bits")
    check_tensor("labels", labels, "N", {"N": num_nodes})
    check_integer("labels", labels)
    check_device("labels", labels.device, device, "the energies")
    labels = labels.to(torch.int64)
    rule = f"must be in 0..{num_labels - 1} or ignore_index = {ignore_index}"
    values = without_transforms(labels)
    if not are_seen(values):
        if values.is_cuda and have_values(values):  # asserted by one kernel, compared by six
            energies = torch.zeros((), device=device).expand(values.numel(), num_labels)
            nll_loss(energies, values.flatten(), ignore_index=ignore_index, reduction="none")
        else:
            good = (values == values.clamp(0, num_labels - 1)) | (values == ignore_index)
            torch._assert_async(good.all(), f"labels: {rule}")
    elif num_nodes > 0:
        known = values.masked_fill(values == ignore_index, 0)
        lowest, highest = (int(bound) for bound in known.aminmax())
        if lowest < 0 or highest >= num_labels:
            place = tuple(((known < 0) | (known >= num_labels)).nonzero()[0].tolist())
            raise ValueError(f"labels: got {int(values[place])} at node {place[-1]}, {rule}")
    return labels, ignore_index
