"""Settings of a training run: data, optimiser, objective and how it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deepcrf_ext.config.data import DataConfig
from deepcrf_ext.config.model import ModelConfig
from deepcrf_ext.constants import Amp
from deepcrf_ext.errors import InputError

ObjectiveName = Literal["piecewise", "pseudo_likelihood", "end_to_end"]


@dataclass
class OptimConfig:
    """The optimiser.

    Args:
        optimiser: "sgd", as in the paper, or "adamw" (Loshchilov and Hutter, arXiv:1711.05101),
            which train gives other defaults: lr 1e-3, lr_initialised 1e-4, weight_decay 0.01.
        lr: Learning rate of new layers.
        lr_initialised: Learning rate of layers that start from given weights (vgg_weights,
            backbone_weights, init_from).
        momentum: Momentum of sgd; the first beta of adamw.
        weight_decay: Weight decay.
        schedule: "exponential" multiplies the learning rate by `decay` after every epoch; "poly"
            lets it fall to zero over the run as (1 - progress) ** 0.9, "cosine" as half a wave.
        decay: Factor an epoch of the exponential schedule.
        warm_up: Epochs at the beginning over which the learning rate rises from almost nothing to
            that of the schedule; fractions too.
    """

    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    lr_initialised: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["exponential", "poly", "cosine"] = "poly"
    decay: float = 0.97
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "lr_initialised", "decay"):
            if not getattr(self, name) > 0:
                raise InputError(f"optim.{name}: got {getattr(self, name)}, must be positive")
        if not self.warm_up >= 0:
            raise InputError(f"optim.warm_up: got {self.warm_up}, must not be negative")
        if not 0 <= self.momentum < 1:
            raise InputError(f"optim.momentum: got {self.momentum}, must be at least 0 and below 1")
        if not self.weight_decay >= 0:
            raise InputError(f"optim.weight_decay: got {self.weight_decay}, must not be negative")


@dataclass(frozen=True)
class PhaseConfig:
    """A part of a run with an objective of its own.

    Args:
        objective: What it minimises, as of a whole run.
        share: Its share of the epochs, relative to the other phases' (the warm start apart).
        lr_factor: Factor of the learning rate.
    """

    objective: ObjectiveName
    share: float = 1.0
    lr_factor: float = 1.0


@dataclass
class TrainConfig:
    """A training run.

    Args:
        data: Images.
        model: Networks.
        optim: Optimiser.
        output: Run folder to create. Null takes runs/<date>-<data set>-<preset>.
        epochs: Passes over the training images.
        batch_size: Images in a step.
        accumulate: Parts, at most, that the images of a process are computed in, one after another:
            less memory, the same step. Batch normalisation alone sees each part (of all processes
            together) by itself.
        seed: Seed of the weights, of the order of the images and of their augmentation.
        device: Where to train: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".
        amp: Run networks and pairwise terms in bfloat16 (true), or in "float16", with the losses
            scaled so that gradients stay within it; losses, marginals and unary energies stay in
            float32. Null: in bfloat16 where the device has instructions for it.
        objective: What training minimises. "piecewise" is the paper's: every potential by its own
            likelihood, without inference. "pseudo_likelihood" (the paper's appendix) is each node's
            label given its neighbours' labels, "end_to_end" each node's label under the marginals
            of mean field, unrolled (model.iterations); both train the unary and all relations
            together, and the weights of the relations (model.relation_weight, which had best start
            at 0.01 then). Or a list of phases, one after another, such as [{objective: piecewise,
            share: 0.7}, {objective: end_to_end, share: 0.3, lr_factor: 0.1}].
        unary_loss: What the unary's own likelihood counts, such as 0.5, beside an objective that
            trains it together with the relations: it stays as good alone, instead of leaving to
            them what it knew.
        warm_start: Share of the epochs that train the unaries alone; then the network of every
            relation starts from the unary's, as if neighbours were independent. 0 trains all from
            the start, as the paper does from VGG-16 weights.
        class_balance: What a class counts in the losses. "median_frequency" weighs rare classes up:
            by the median frequency over its own, frequencies counted over the training images that
            the class occurs in. Or weights: a list in the order of the classes, or {car: 2} where
            the others weigh 1, or a YAML or JSON file of either. A node counts as its label, an
            edge as the geometric mean of its two labels' weights.
        label_smoothing: Share of a node's label, such as 0.1, that the piecewise losses of the
            unaries spread over all classes alike; relations and the other objectives take labels as
            they are.
        ema: Decay of the exponential moving average of the weights, such as 0.999, that validation
            measures and that checkpoints hold for prediction; less at first. 0 takes the weights
            themselves.
        vgg_weights: Start from VGG-16: a state dict (.pth, .safetensors) of torchvision's vgg16 or
            vgg16_bn, or of the 13 convolutions alone under any names, for RGB images normalised as
            torchvision's; "download" fetches torchvision's.
        backbone_weights: Start the backbone (model.backbone other than vgg) from a file of its
            library's weights, .pth or .safetensors; tensors are taken by name and shape. It then
            learns at optim.lr_initialised.
        init_from: Start from the weights of a trained run, a run folder or a checkpoint, of other
            classes too: what fits is taken, the last layers class by class by name. It learns at
            optim.lr_initialised, what is new at optim.lr, without a warm start where the relations
            are taken.
        validate_every: Epochs between measurements on the validation images; the last epoch is
            always measured.
        save_minutes: Longest time between two checkpoints; one is also written after every epoch.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    output: Path | None = None
    epochs: int = 12
    batch_size: int = 8
    accumulate: int = 1
    seed: int = 0
    device: str = "auto"
    amp: Amp = None
    objective: ObjectiveName | tuple[PhaseConfig, ...] = "piecewise"
    unary_loss: float = 0.0
    warm_start: float = 0.6
    class_balance: (
        Literal["none", "median_frequency"] | tuple[float, ...] | dict[str, float] | str
    ) = "none"
    label_smoothing: float = 0.0
    ema: float = 0.0
    vgg_weights: str | None = None
    backbone_weights: str | None = None
    init_from: str | None = None
    validate_every: int = 2
    save_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, must be at least 1")
        if not 1 <= self.accumulate <= self.batch_size:
            raise InputError(
                f"accumulate: got {self.accumulate}, must be 1 to batch_size, {self.batch_size}"
            )
        vgg = self.model.backbone == "vgg"
        if (self.backbone_weights if vgg else self.vgg_weights) is not None:
            name = "backbone_weights" if vgg else "vgg_weights"
            raise InputError(f"{name}: does not go with model.backbone {self.model.backbone}")
        if not 0 <= self.unary_loss < math.inf:
            raise InputError(f"unary_loss: got {self.unary_loss}, must be finite and not negative")
        for name in ("warm_start", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"{name}: got {getattr(self, name)}, must be at least 0 and below 1"
                )
        if self.warm_start and self.model.pairwise_hidden < 2 * self.model.hidden:
            raise InputError(
                f"model.pairwise_hidden: got {self.model.pairwise_hidden}, must be at least twice "
                f"model.hidden, {self.model.hidden}, for a warm start"
            )
        if self.seed < 0:
            raise InputError(f"seed: got {self.seed}, must not be negative")
        if not self.save_minutes > 0:
            raise InputError(f"save_minutes: got {self.save_minutes}, must be positive")
        if not self.phases():
            raise InputError("objective: got no phases, must be at least one")
        for phase in self.phases():
            for name in ("share", "lr_factor"):
                value = getattr(phase, name)
                if not value > 0:
                    raise InputError(f"objective: got {name} {value} of a phase, must be positive")

    def phases(self) -> tuple[PhaseConfig, ...]:
        """The phases of the objective: one where it is the same throughout."""
        if isinstance(self.objective, str):
            return (PhaseConfig(self.objective),)
        return self.objective
