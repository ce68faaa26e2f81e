"""Relations between the nodes of a grid: which pairs of them have energies (paper, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from deepcrf_ext.errors import InputError
from deepcrf_ext.ops._loading import loadable
from deepcrf_ext.ops._number_checks import checked_int, is_number
from deepcrf_ext.ops.graph import RangeBox

Kind = Literal["surrounding", "above_below", "left_right", "offsets"]


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

    Raises:
        TypeError, InputError: a value does not fit; the message names it.

    Example:
        >>> from deepcrf_ext import nn as crf
        >>> wide = crf.RelationConfig("left_right", width=0.8, height=0.2, step=2)
        >>> wide.box(height=10, width=15)
        RangeBox(top=-1, bottom=1, left=1, right=8, step=2)
        >>> layer = crf.PairwiseCRF(in_channels=16, num_classes=5, relations={"wide": wide})
    """

    kind: Kind
    width: float = 0.4
    height: float = 0.4
    offsets: tuple[int, int, int, int] | None = None
    step: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(
                f"relation.kind: got {self.kind!r}, must be one of {', '.join(get_args(Kind))}"
            )
        if (self.kind == "offsets") != (self.offsets is not None):
            raise InputError(
                f"relation.offsets: got {self.offsets} beside the kind {self.kind!r}, must be "
                "given for 'offsets' alone"
            )
        if self.offsets is not None:
            if not isinstance(self.offsets, (list, tuple)) or len(self.offsets) != 4:
                raise InputError(f"relation.offsets: got {self.offsets!r}, must be four integers")
            top, bottom, left, right = self.offsets
            if top > bottom or left > right:
                raise InputError(
                    f"relation.offsets: got {self.offsets}, must be top <= bottom, left <= right"
                )
        for name in ("width", "height"):
            value = getattr(self, name)
            if not (is_number(value) and 0 < value < math.inf):
                raise InputError(f"relation.{name}: got {value!r}, must be positive and finite")
        if self.kind == "surrounding" and self.width != self.height:
            raise InputError(
                f"relation.width: got {self.width} for a surrounding square, must be its height, "
                f"{self.height}"
            )
        if checked_int("relation.step", self.step) < 1:
            raise InputError(f"relation.step: got {self.step}, must be at least 1")

    def box(self, height: int, width: int) -> RangeBox:
        """The box of neighbours on a grid of height x width nodes."""
        if self.offsets is not None:
            return RangeBox(*self.offsets, step=self.step)
        size = {"box_width": self.width, "box_height": self.height}
        if self.kind == "surrounding":
            box = RangeBox.surrounding(height, width, size=self.width)
        elif self.kind == "above_below":
            box = RangeBox.above_below(height, width, **size)
        else:
            box = RangeBox.left_right(height, width, **size)
        return replace(box, step=self.step)

    def __reduce__(self) -> tuple[Any, ...]:
        return _relation_config, (self.kind, self.width, self.height, self.offsets, self.step)


@loadable
def _relation_config(*values: Any) -> RelationConfig:
    return RelationConfig(*values)


NAMED_RELATIONS = {
    "surrounding": RelationConfig("surrounding", 0.4, 0.4),
    "above_below": RelationConfig("above_below", 0.3, 0.4),
    "left_right": RelationConfig("left_right", 0.4, 0.3),
}
"""The relations that a name alone stands for; the paper has the first two."""


Relation: TypeAlias = RelationConfig | RangeBox


class RelationWeights(nn.ParameterDict):
    """The weight of each relation by name, parameters of shape [], 0.01 at the start.

    What fills a model that was made without values asks every module with parameters of its own to
    reset them, so that these have one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__({name: nn.Parameter(torch.empty(())) for name in names})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts the weights small again."""
        for weight in self.values():
            nn.init.constant_(weight, 0.01)


def named_relations(relations: Sequence[str] | Mapping[str, Relation]) -> dict[str, RelationConfig]:
    """Relations by name, from names of `NAMED_RELATIONS` or from a dictionary of one's own.

    Raises:
        TypeError: `relations`, a name or a relation is of another type.
        ValueError: a name is not known, given twice, or cannot be the key of a state.
    """
    if isinstance(relations, Mapping):
        given = dict(relations)
    elif isinstance(relations, (list, tuple)):
        unknown = [name for name in relations if name not in NAMED_RELATIONS]
        if unknown:
            raise ValueError(
                f"relations: got {unknown[0]!r}, must be names out of "
                f"{', '.join(NAMED_RELATIONS)}, or a dictionary of relations by name"
            )
        if len(set(relations)) < len(relations):
            raise ValueError(f"relations: got {tuple(relations)!r}, must be different names")
        given = {name: NAMED_RELATIONS[name] for name in relations}
    else:
        raise TypeError(
            f"relations: got {type(relations).__name__}, must be a tuple of names or a dictionary"
        )
    return {_checked_name(name): _as_config(name, value) for name, value in given.items()}


def _checked_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"relations: got the name {name!r}, must be a str")
    if not name.isidentifier() or name == "unary" or hasattr(RelationWeights, name):
        raise ValueError(
            f"relations: got the name {name!r}, must be an identifier other than 'unary' and the "
            "attributes of a torch.nn.ParameterDict, as states and losses are keyed by it"
        )
    return name


def _as_config(name: str, relation: Relation) -> RelationConfig:
    if isinstance(relation, RelationConfig):
        return relation
    if isinstance(relation, RangeBox):
        sides = (relation.top, relation.bottom, relation.left, relation.right)
        return RelationConfig("offsets", offsets=sides, step=relation.step)
    raise TypeError(
        f"relations[{name!r}]: got {type(relation).__name__}, must be a RangeBox or RelationConfig"
    )


def paper_relations() -> dict[str, RelationConfig]:
    """The paper's two (section 3.2): a square of 0.4 and a box of 0.3 x 0.4 of the short side."""
    return {name: NAMED_RELATIONS[name] for name in ("surrounding", "above_below")}
