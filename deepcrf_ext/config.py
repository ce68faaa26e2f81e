"""Settings of a run, as plain dataclasses.

The commands turn them into options and config files; a checkpoint carries them as a dictionary
(`to_dict`, `from_dict`). The defaults of every field are the preset `small`; `preset("paper")`
gives the paper's and `preset("cvpr16")` those of its later form.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from deepcrf_ext.errors import InputError

ObjectiveName = Literal["piecewise", "pseudo_likelihood", "end_to_end"]
PresetName = Literal["small", "paper", "cvpr16", "small-cvpr16"]


@dataclass(frozen=True)
class RelationConfig:
    """One kind of neighbourhood: the nodes q that a node p is joined to.

    Args:
        kind: "surrounding" is a square centred on the node, "above_below" a box that ends at the
            node with the upper node as p, "left_right" a box beside the node with the left node as
            p, "offsets" a box of fixed offsets in nodes.
        width: Width of the box as a fraction of the short side of the node grid.
        height: Height of the box as a fraction of the short side of the node grid (a surrounding
            box is square).
        offsets: For kind "offsets": top, bottom, left, right, inclusive offsets of q from p; rows
            grow downward.
        step: A dilated box: only neighbours whose offsets, of rows and of columns, are multiples
            of it.
    """

    kind: Literal["surrounding", "above_below", "left_right", "offsets"]
    width: float = 0.4
    height: float = 0.4
    offsets: tuple[int, int, int, int] | None = None
    step: int = 1

    def __post_init__(self) -> None:
        if (self.kind == "offsets") != (self.offsets is not None):
            raise InputError(
                f"relation of kind {self.kind!r}: offsets go with kind 'offsets' and only with it"
            )
        if self.offsets is not None:
            top, bottom, left, right = self.offsets
            if top > bottom or left > right:
                raise InputError(
                    f"relation: offsets {self.offsets} must be top <= bottom, left <= right"
                )
        if self.kind == "surrounding" and self.width != self.height:
            raise InputError(
                f"surrounding relation: width {self.width} and height {self.height} must be equal"
            )
        if self.width <= 0 or self.height <= 0:
            raise InputError(
                f"relation: width {self.width} and height {self.height} must be positive"
            )
        if self.step < 1:
            raise InputError(f"relation: step {self.step} must be at least 1")


def paper_relations() -> dict[str, RelationConfig]:
    """The paper's two (section 3.2): a square of 0.4 and a box of 0.3 x 0.4 of the short side."""
    return {
        "surrounding": RelationConfig("surrounding", 0.4, 0.4),
        "above_below": RelationConfig("above_below", 0.3, 0.4),
    }


@dataclass
class DataConfig:
    """Images and how training sees them.

    Args:
        dataset: "scenes" is rendered on the fly and needs no files; "camvid" and "voc" need
            --data.root.
        root: Folder of the data set.
        train_split: Split that training reads ("train_aug" is VOC with the SBD annotations).
        val_split: Split that is measured while training.
        crop: Height and width of the random crop, in pixels. Null takes whole images, which must
            then all have one size.
        flip: Mirror half of the training images.
        scale_range: Smallest and largest factor of the random resize before the crop. Null leaves
            sizes as they are.
        workers: Processes that read images beside the training process; 0 reads them in it.
    """

    dataset: Literal["scenes", "camvid", "voc"] = "scenes"
    root: Path | None = None
    train_split: str = "train"
    val_split: str = "val"
    crop: tuple[int, int] | None = (96, 128)
    flip: bool = True
    scale_range: tuple[float, float] | None = (0.8, 1.25)
    workers: int = 0

    def __post_init__(self) -> None:
        if self.crop is not None and min(self.crop) < 1:
            raise InputError(f"data.crop: {self.crop} must be two positive sizes")
        if self.scale_range is not None and not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise InputError(
                f"data.scale_range: {self.scale_range} must be positive and in ascending order"
            )
        if self.workers < 0:
            raise InputError(f"data.workers: {self.workers} must not be negative")


@dataclass
class ModelConfig:
    """Networks of the potentials. Every potential has its own, of this shape.

    share_blocks, head_per_scale, pooling_windows and upsampling make the difference between the
    model of the first paper and that of CVPR 2016 (arXiv:1504.01013v4).

    Args:
        preset: Which defaults the model, the optimiser and the length of the run start from:
            "paper" is the published model, "cvpr16" its later form; "small" and "small-cvpr16" are
            narrow ones that train from scratch on two CPU cores.
        widths: Channels of each convolution block.
        convs: Number of 3x3 convolutions of each block.
        pooled_blocks: How many of the first blocks are closed by 2x2 max pooling; the output stride
            is 2 to that power.
        head_widths: Channels of block 6: a 7x7 convolution, then 3x3 convolutions.
        batch_norm: Normalise after every convolution, for training from scratch.
        scales: Factors of the image pyramid, largest first.
        share_blocks: Compute all blocks but block 6 once for all potentials; each then trains them.
        head_per_scale: A block 6 of its own for every scale.
        pooling_windows: Sliding pyramid pooling: sides, odd, in nodes, of the windows whose maxima
            are added to the features.
        upsampling: How the maps of smaller scales grow to the largest.
        hidden: Width of the hidden layer of a unary.
        pairwise_hidden: Width of the hidden layer of a pairwise potential.
        relations: Pairwise relations by name, as many as wanted.
        potentials: Which networks exist and are trained: "unary", "unary_1scale" (the unary network
            on the largest scale alone) and names of relations. Null means all of them.
        iterations: Mean-field iterations of a prediction.
    """

    preset: PresetName = "small"
    widths: tuple[int, ...] = (16, 32, 64, 128, 128)
    convs: tuple[int, ...] = (1, 1, 2, 2, 1)
    pooled_blocks: int = 3
    head_widths: tuple[int, ...] = (128, 128)
    batch_norm: bool = True
    scales: tuple[float, ...] = (1.2, 0.8, 0.4)
    share_blocks: bool = False
    head_per_scale: bool = False
    pooling_windows: tuple[int, ...] = ()
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    hidden: int = 64
    pairwise_hidden: int = 128
    relations: dict[str, RelationConfig] = field(default_factory=paper_relations)
    potentials: tuple[str, ...] | None = None
    iterations: int = 2

    def __post_init__(self) -> None:
        if (
            len(self.widths) != len(self.convs)
            or not self.widths
            or min(self.widths + self.convs) < 1
        ):
            raise InputError(
                f"model.widths {self.widths} and model.convs {self.convs} must hold one positive "
                "number for each block"
            )
        if not 0 <= self.pooled_blocks <= len(self.widths):
            raise InputError(
                f"model.pooled_blocks: {self.pooled_blocks} must be 0 to {len(self.widths)}"
            )
        if not self.head_widths or min(self.head_widths) < 1 or self.hidden < 1:
            raise InputError(
                f"model.head_widths {self.head_widths} and model.hidden {self.hidden} must be "
                "positive"
            )
        if not self.scales or min(self.scales) <= 0 or max(self.scales) != self.scales[0]:
            raise InputError(f"model.scales: {self.scales} must be positive, the largest first")
        if any(window < 1 or window % 2 == 0 for window in self.pooling_windows):
            raise InputError(f"model.pooling_windows: {self.pooling_windows} must be odd")
        if self.iterations < 0:
            raise InputError(f"model.iterations: {self.iterations} must not be negative")
        reserved = {"unary", "unary_1scale"} & self.relations.keys()
        if reserved:
            raise InputError(
                f"model.relations: {sorted(reserved)[0]!r} is the name of a unary potential"
            )
        unknown = set(self.potentials or ()) - set(self.all_potentials())
        if unknown or self.potentials == ():
            raise InputError(
                f"model.potentials: {', '.join(sorted(unknown)) or 'none'}; must be some of "
                f"{', '.join(self.all_potentials())}"
            )

    def all_potentials(self) -> tuple[str, ...]:
        """Names of every potential that this model can have."""
        return ("unary", "unary_1scale", *self.relations)


@dataclass
class OptimConfig:
    """Stochastic gradient descent.

    Args:
        lr: Learning rate of new layers.
        lr_initialised: Learning rate of layers that start from VGG-16 weights.
        momentum: Momentum.
        weight_decay: Weight decay.
        schedule: "exponential" multiplies the learning rate by `decay` after every epoch; "poly"
            lets it fall to zero over the run as (1 - progress) ** 0.9.
        decay: Factor an epoch of the exponential schedule.
    """

    lr: float = 0.05
    lr_initialised: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["exponential", "poly"] = "poly"
    decay: float = 0.97

    def __post_init__(self) -> None:
        for name in ("lr", "lr_initialised", "decay"):
            if not getattr(self, name) > 0:
                raise InputError(f"optim.{name}: {getattr(self, name)} must be positive")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise InputError(
                f"optim.momentum {self.momentum} must be in [0, 1), optim.weight_decay "
                f"{self.weight_decay} not negative"
            )


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
        accumulate: Parts that a step's images are computed in, one after another: less memory, the
            same step. Batch normalisation alone sees each part by itself.
        seed: Seed of the weights, of the order of the images and of their augmentation.
        device: Where to train: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".
        amp: Run the convolutions in bfloat16; losses and energies stay in float32. Null: where the
            device has instructions for it.
        objective: What training minimises. "piecewise" is the paper's: every potential by its own
            likelihood, without inference. "pseudo_likelihood" (the paper's appendix) is each node's
            label given its neighbours' labels, "end_to_end" each node's label under the marginals
            of mean field, unrolled (model.iterations); both train the unary and all relations
            together. Or a list of phases, one after another, such as [{objective: piecewise,
            share: 0.7}, {objective: end_to_end, share: 0.3, lr_factor: 0.1}].
        warm_start: Share of the epochs that train the unaries alone; then the network of every
            relation starts from the unary's, as if neighbours were independent. 0 trains all from
            the start, as the paper does from VGG-16 weights.
        class_balance: What a class counts in the losses. "median_frequency" weighs rare classes up:
            by the median frequency over its own, frequencies counted over the training images that
            the class occurs in; an edge weighs the geometric mean of its two labels' weights.
        vgg_weights: Start from VGG-16: a torchvision state dict (.pth), or "download" to fetch
            torchvision's.
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
    amp: bool | None = None
    objective: ObjectiveName | tuple[PhaseConfig, ...] = "piecewise"
    warm_start: float = 0.6
    class_balance: Literal["none", "median_frequency"] = "none"
    vgg_weights: str | None = None
    validate_every: int = 2
    save_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} must be at least 1")
        if not 1 <= self.accumulate <= self.batch_size:
            raise InputError(
                f"accumulate: {self.accumulate} must be 1 to batch_size, {self.batch_size}"
            )
        if not 0 <= self.warm_start < 1:
            raise InputError(f"warm_start: {self.warm_start} must be at least 0 and below 1")
        if self.warm_start and self.model.pairwise_hidden < 2 * self.model.hidden:
            raise InputError(
                f"model.pairwise_hidden: {self.model.pairwise_hidden} must be at least twice "
                f"model.hidden, {self.model.hidden}, for a warm start"
            )
        if self.seed < 0:
            raise InputError(f"seed: {self.seed} must not be negative")
        if self.save_minutes <= 0:
            raise InputError(f"save_minutes: {self.save_minutes} must be positive")
        if not self.phases():
            raise InputError("objective: a list of phases must not be empty")
        for phase in self.phases():
            if not (phase.share > 0 and phase.lr_factor > 0):
                raise InputError(
                    f"objective: share {phase.share} and lr_factor {phase.lr_factor} of a phase "
                    "must be positive"
                )

    def phases(self) -> tuple[PhaseConfig, ...]:
        """The phases of the objective: one where it is the same throughout."""
        if isinstance(self.objective, str):
            return (PhaseConfig(self.objective),)
        return self.objective


_PAPER: dict[str, Any] = {
    "model.widths": (64, 128, 256, 512, 512),
    "model.convs": (2, 2, 3, 3, 3),
    "model.pooled_blocks": 5,
    "model.head_widths": (4096, 512, 512),
    "model.batch_norm": False,
    "model.hidden": 512,
    "model.pairwise_hidden": 512,
    "optim.lr": 1e-3,
    "optim.lr_initialised": 1e-4,
    "optim.schedule": "exponential",
    "data.crop": (450, 600),
    "epochs": 60,
    "warm_start": 0.0,
    "batch_size": 2,
}
_FEATMAP: dict[str, Any] = {
    "model.share_blocks": True,
    "model.head_per_scale": True,
    "model.pooling_windows": (5, 9),
    "model.upsampling": "bilinear",
    "model.iterations": 3,
    "model.relations": {
        "surrounding": RelationConfig("surrounding", 0.4, 0.4),
        "above_below": RelationConfig("above_below", 0.4, 0.4),
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"model.preset": "small"},
    "paper": {"model.preset": "paper", **_PAPER},
    "cvpr16": {
        **_PAPER,
        **_FEATMAP,
        "model.preset": "cvpr16",
        "model.pooled_blocks": 4,
        "data.scale_range": (0.7, 1.2),
    },
    "small-cvpr16": {"model.preset": "small-cvpr16", **_FEATMAP},
}
"""What each preset changes from the defaults of the dataclasses, by dotted option name."""


def preset(name: PresetName) -> TrainConfig:
    """All settings of a preset. Raises InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"preset: {name!r} must be one of {', '.join(PRESETS)}")
    values: dict[str, dict[str, Any]] = {"data": {}, "model": {}, "optim": {}, "": {}}
    for option, value in copy.deepcopy(PRESETS[name]).items():
        group, _, key = option.rpartition(".")
        values[group][key] = value
    return TrainConfig(
        DataConfig(**values["data"]),
        ModelConfig(**values["model"]),
        OptimConfig(**values["optim"]),
        **values[""],
    )


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings as nested dictionaries of plain values, as YAML and checkpoints hold them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The settings back from `to_dict`. Raises InputError naming a value that does not fit."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, "run")
    try:
        parsed = parser.instantiate(parser.parse_object({"run": values}))
    except Exception as error:
        raise InputError(f"settings: {' '.join(str(error).split())}") from error
    config: TrainConfig = parsed["run"]
    return config
