"""Settings of the networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deepcrf_ext.errors import InputError
from deepcrf_ext.nn.relations import RelationConfig, paper_relations

PresetName = Literal["small", "paper", "cvpr16", "small-cvpr16"]


@dataclass
class ModelConfig:
    """Networks of the potentials. Every potential has its own, of this shape.

    share_blocks, head_per_scale, pooling_windows and upsampling make the difference between the
    model of the first paper and that of CVPR 2016 (arXiv:1504.01013v4).

    Args:
        preset: Which defaults the model, the optimiser and the length of the run start from:
            "paper" is the published model, "cvpr16" its later form; "small" and "small-cvpr16" are
            narrow ones that train from scratch on two CPU cores.
        backbone: What takes the place of blocks 1-5: "vgg" is them, as widths, convs and
            pooled_blocks say; "timm:NAME", "torchvision:NAME" and "efficientnet_lite:N" are
            networks of these libraries with a light decoder to the output stride of pooled_blocks
            and to widths[-1] channels; share_blocks lets all potentials have one.
        widths: Channels of each convolution block.
        convs: Number of 3x3 convolutions of each block.
        pooled_blocks: How many of the first blocks are closed by 2x2 max pooling; the output stride
            is 2 to that power.
        head_widths: Channels of block 6: a 7x7 convolution, then 3x3 convolutions. [] is no block
            6: the maps of the blocks, or of a backbone, are the features.
        batch_norm: Normalise after every convolution, for training from scratch.
        scales: Factors of the image pyramid, largest first.
        share_blocks: Compute all blocks but block 6 once for all potentials; each then trains them.
        head_per_scale: A block 6 of its own for every scale.
        pooling_windows: Sliding pyramid pooling: sides, odd, in nodes, of the windows whose maxima
            are added to the features.
        upsampling: How the maps of smaller scales grow to the largest.
        hidden: Width of the hidden layer of a unary.
        pairwise_hidden: Width of the hidden layer of a pairwise potential.
        dropout: Share of the features of every node that each step of training leaves out at
            random, for networks that learn their training images by heart.
        relations: Pairwise relations by name, as many as wanted.
        potentials: Which networks exist and are trained: a list of "unary", "unary_1scale" (the
            unary network on the largest scale alone, which the row unary-1scale takes) and names of
            relations; or "all" of them. Null means those of a prediction: all but "unary_1scale".
        iterations: Mean-field iterations of a prediction.
        relation_weight: What the energies of every relation are multiplied by in a prediction, at
            first: 1 is the paper's. End-to-end training and `python -m deepcrf_ext.calibrate` fit
            one for each relation.
    """

    preset: PresetName = "small"
    backbone: str = "vgg"
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
    dropout: float = 0.0
    relations: dict[str, RelationConfig] = field(default_factory=paper_relations)
    potentials: Literal["all"] | tuple[str, ...] | None = None
    iterations: int = 2
    relation_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.widths:
            raise InputError("model.widths: got no block, must be at least one")
        if len(self.convs) != len(self.widths):
            raise InputError(
                f"model.convs: got {self.convs}, must be one number for each of the "
                f"{len(self.widths)} blocks of model.widths"
            )
        for name in ("widths", "convs", "head_widths", "pooling_windows"):
            numbers = getattr(self, name)
            if min(numbers, default=1) < 1:
                raise InputError(f"model.{name}: got {numbers}, must be positive")
        for name in ("hidden", "pairwise_hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}: got {getattr(self, name)}, must be positive")
        if not 0 <= self.pooled_blocks <= len(self.widths):
            raise InputError(
                f"model.pooled_blocks: got {self.pooled_blocks}, must be 0 to {len(self.widths)}"
            )
        if not self.scales or min(self.scales) <= 0 or max(self.scales) != self.scales[0]:
            raise InputError(
                f"model.scales: got {self.scales}, must be positive, the largest first"
            )
        if any(window % 2 == 0 for window in self.pooling_windows):
            raise InputError(f"model.pooling_windows: got {self.pooling_windows}, must be odd")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout: got {self.dropout}, must be at least 0 and below 1")
        if self.iterations < 0:
            raise InputError(f"model.iterations: got {self.iterations}, must not be negative")
        if not 0 < self.relation_weight < float("inf"):
            raise InputError(
                f"model.relation_weight: got {self.relation_weight}, must be positive and finite"
            )
        reserved = {"unary", "unary_1scale"} & self.relations.keys()
        if reserved:
            raise InputError(f"model.relations: got the name {min(reserved)!r}, must be no unary's")
        unknown = set(self.potential_names()) - set(self.all_potentials())
        if unknown or self.potentials == ():
            raise InputError(
                f"model.potentials: got {', '.join(sorted(unknown)) or 'none'}, must be the word "
                f"all, or a list of some of {', '.join(self.all_potentials())}"
            )

    def all_potentials(self) -> tuple[str, ...]:
        """Names of every potential that this model can have."""
        return ("unary", "unary_1scale", *self.relations)

    def potential_names(self) -> tuple[str, ...]:
        """Names of the potentials that this model has, as `potentials` says."""
        if self.potentials is None:
            return ("unary", *self.relations)
        if self.potentials == "all":
            return self.all_potentials()
        return tuple(dict.fromkeys(self.potentials))
