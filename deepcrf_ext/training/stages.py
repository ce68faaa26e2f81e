"""The stages of a run: what trains in which epochs, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from deepcrf_ext.config import ObjectiveName, PhaseConfig, TrainConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF


@dataclass(frozen=True)
class Stage:
    """The epochs from `first_epoch` (counted from 0) until the next stage.

    objective: what they minimise; potentials: the ones they train; lr_factor: of the learning rate.
    """

    objective: ObjectiveName
    potentials: tuple[str, ...]
    lr_factor: float
    first_epoch: int


def plan_stages(config: TrainConfig, model: DeepCRF) -> tuple[Stage, ...]:
    """The warm start, if there is one, then the phases of the objective in whole epochs.

    Raises InputError when a phase would not get an epoch.
    """
    names = model.potential_names
    stages = []
    warm = 0
    if config.warm_start > 0 and model.can_warm_start():
        stages.append(Stage("piecewise", model.unary_names(), 1.0, 0))
        warm = int(config.warm_start * config.epochs)
    phases = config.phases()
    for phase, first in zip(phases, first_epochs(phases, config.epochs - warm), strict=True):
        stages.append(Stage(phase.objective, names, phase.lr_factor, warm + first))
    return tuple(stages)


def first_epochs(phases: Sequence[PhaseConfig], epochs: int) -> list[int]:
    """The epoch, counted from 0, that each phase begins with when together they have `epochs`.

    Raises InputError when one would not get an epoch.
    """
    sums = list(accumulate((phase.share for phase in phases), initial=0.0))
    bounds = [round(epochs * part / sums[-1]) for part in sums]
    if any(first >= end for first, end in pairwise(bounds)):
        raise InputError(
            f"objective: {len(phases)} phases of shares {[phase.share for phase in phases]} do not "
            f"all get an epoch of {epochs}"
        )
    return bounds[:-1]
