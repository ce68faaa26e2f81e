"""What a training step minimises: one or several losses, each with a backward pass of its own.

A loss is a mean over the valid nodes or edges of a batch. A batch that is computed in parts, one
after another or on several processes, has the same mean and so the same gradient when the mean of
each part is weighted by the part's share of those nodes or edges: see `part_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deepcrf_ext.models import DeepCRF


class Loss(Protocol):
    """One backward pass; `name` is what the loss is logged as."""

    @property
    def name(self) -> str: ...

    def mean(self, model: DeepCRF, pyramid: list[Tensor], labels: Tensor) -> Tensor:
        """The scalar loss of images from `model.pyramid` with labels int64 [B, H, W]."""

    def count(self, model: DeepCRF, labels: Tensor) -> Tensor:
        """How many nodes or edges of these labels the mean is taken over, a scalar."""


@dataclass(frozen=True)
class PotentialLoss:
    """The piecewise loss of one potential (paper, section 5)."""

    name: str

    def mean(self, model: DeepCRF, pyramid: list[Tensor], labels: Tensor) -> Tensor:
        return model.loss(self.name, pyramid, labels)

    def count(self, model: DeepCRF, labels: Tensor) -> Tensor:
        return model.loss_count(self.name, labels)


def make_losses(potentials: Sequence[str]) -> tuple[Loss, ...]:
    """The losses of a step that trains these potentials, each independently of the others."""
    return tuple(PotentialLoss(name) for name in potentials)


def part_counts(model: DeepCRF, losses: Sequence[Loss], parts: Sequence[Tensor]) -> Tensor:
    """`Loss.count` of each loss on the labels [B, H, W] of each part, [losses, parts]."""
    return torch.stack(
        [torch.stack([loss.count(model, labels) for labels in parts]) for loss in losses]
    )


def part_weights(counts: Tensor, totals: Tensor) -> Tensor:
    """What each part's mean counts for in the mean over all parts, float32 [losses, parts].

    Args:
        counts: [losses, parts], of `part_counts`.
        totals: [losses], the counts of the whole batch.

    The sum of a loss's weighted parts is its mean over all valid nodes or edges of the whole batch,
    and so is the gradient; a loss without any gets 0. What still depends on the parts is batch
    normalisation, whose statistics are those of each part.
    """
    return (counts / totals.clamp(min=1)[:, None]).float()
