"""Stochastic gradient descent with the paper's learning-rate groups (section 5)."""

from __future__ import annotations

from torch.optim import SGD

from deepcrf_ext.config import OptimConfig
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.vgg_init import vgg_layers


def make_optimiser(model: DeepCRF, config: OptimConfig, from_vgg: bool) -> SGD:
    """SGD in two groups: new layers at `lr`, layers that start from VGG-16 at `lr_initialised`."""
    initialised = set()
    if from_vgg:
        initialised = {p for _, conv in vgg_layers(model) for p in conv.parameters()}
    new = [p for p in model.parameters() if p not in initialised]
    old = [p for p in model.parameters() if p in initialised]
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
