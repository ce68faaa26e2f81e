"""Stochastic gradient descent with the paper's learning-rate groups (section 5)."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.optim import SGD

from deepcrf_ext.config import OptimConfig


def make_optimiser(model: nn.Module, config: OptimConfig, initialised: Collection[str] = ()) -> SGD:
    """SGD in two groups: new layers at `lr`, those that start from given weights, named by their
    parameters, at `lr_initialised`."""
    new = [p for name, p in model.named_parameters() if name not in initialised]
    old = [p for name, p in model.named_parameters() if name in initialised]
    groups = [(new, config.lr), (old, config.lr_initialised)]
    return SGD(
        [{"params": ps, "lr": rate, "initial_lr": rate} for ps, rate in groups if ps],
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def learning_rate_factor(config: OptimConfig, progress: float, epochs: int) -> float:
    """The schedule's factor of the learning rate after `progress` of `epochs` epochs."""
    if config.schedule == "exponential":
        return config.decay ** int(progress)
    return max(0.0, 1 - progress / epochs) ** 0.9


def set_learning_rate(optimiser: SGD, factor: float) -> None:
    """Gives every group of `make_optimiser` its initial learning rate times a factor."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group["initial_lr"]
