"""Optimisers with the paper's learning-rate groups (section 5), and schedules."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from deepcrf_ext.config import OptimConfig

_FIRST = 0.01  # of the learning rate, that a warm-up begins with

_LOG_WEIGHT_RATE = 10  # of AdamW's steps, which do not grow with the gradient; weights go far


def make_optimiser(
    model: nn.Module, config: OptimConfig, initialised: Collection[str]
) -> Optimizer:
    """SGD or AdamW in groups: new layers at `lr`, those that start from given weights at
    `lr_initialised`; logarithms of the weights of relations at `lr`, ten times that for AdamW,
    without decay.

    initialised: the names of the parameters that start from given weights.
    """
    new: list[nn.Parameter] = []
    old: list[nn.Parameter] = []
    logs: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name.endswith(".log_weight"):
            logs.append(parameter)
        else:
            (old if name in initialised else new).append(parameter)
    adamw, decay = config.optimiser == "adamw", config.weight_decay
    log_rate = config.lr * (_LOG_WEIGHT_RATE if adamw else 1)
    rates = [(new, config.lr, decay), (old, config.lr_initialised, decay), (logs, log_rate, 0.0)]
    groups = [
        {"params": ps, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for ps, rate, decay in rates
        if ps
    ]
    if adamw:
        return AdamW(groups, betas=(config.momentum, 0.999))
    return SGD(groups, momentum=config.momentum)


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
