"""Optimisers with the paper's learning-rate groups (section 5), and schedules."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from deepcrf_ext.config import OptimConfig

_FIRST = 0.01  # of the learning rate, that a warm-up begins with


def make_optimiser(
    model: nn.Module, config: OptimConfig, initialised: Collection[str] = ()
) -> Optimizer:
    """SGD or AdamW in two groups: new layers at `lr`, those that start from given weights at
    `lr_initialised`.

    initialised: the names of the parameters of the latter.
    """
    new = [p for name, p in model.named_parameters() if name not in initialised]
    old = [p for name, p in model.named_parameters() if name in initialised]
    rates = [(new, config.lr), (old, config.lr_initialised)]
    groups = [{"params": ps, "lr": rate, "initial_lr": rate} for ps, rate in rates if ps]
    if config.optimiser == "adamw":
        betas = (config.momentum, 0.999)
        return AdamW(groups, betas=betas, weight_decay=config.weight_decay)
    return SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)


def learning_rate_factor(config: OptimConfig, progress: float, epochs: int) -> float:
    """The schedule's factor of the learning rate after `progress` of `epochs` epochs."""
    share = min(1.0, progress / epochs)
    if config.schedule == "exponential":
        factor = config.decay ** int(progress)
    elif config.schedule == "cosine":
        factor = (1 + math.cos(math.pi * share)) / 2
    else:
        factor = (1 - share) ** 0.9
    if progress < config.warm_up:
        factor *= _FIRST + (1 - _FIRST) * progress / config.warm_up
    return factor


def set_learning_rate(optimiser: Optimizer, factor: float) -> None:
    """Gives every group of `make_optimiser` its initial learning rate times a factor."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group["initial_lr"]
