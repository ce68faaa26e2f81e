"""Stochastic gradient descent with the paper's learning-rate groups (section 5)."""

from __future__ import annotations

from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from deepcrf_ext.config import OptimConfig
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.vgg import VGGPart


def make_optimiser(model: DeepCRF, config: OptimConfig, from_vgg: bool) -> SGD:
    """SGD in two groups: new layers at `lr`, layers that start from VGG-16 at `lr_initialised`."""
    initialised = set()
    if from_vgg:
        parts = [module for module in model.modules() if isinstance(module, VGGPart)]
        convs = [conv for part in parts for conv in part.vgg_convs()]
        initialised = {parameter for conv in convs for parameter in conv.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if p not in initialised], "lr": config.lr},
        {
            "params": [p for p in model.parameters() if p in initialised],
            "lr": config.lr_initialised,
        },
    ]
    return SGD(
        [group for group in groups if group["params"]],
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def make_schedule(optimiser: SGD, config: OptimConfig, epochs: int, per_epoch: int) -> LambdaLR:
    """The learning rate as a function of the step, to be advanced once a step."""

    def exponential(step: int) -> float:
        return config.decay ** float(step // per_epoch)

    def poly(step: int) -> float:
        return max(0.0, 1 - step / (epochs * per_epoch)) ** 0.9

    return LambdaLR(optimiser, exponential if config.schedule == "exponential" else poly)
