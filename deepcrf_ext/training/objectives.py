"""What a training step minimises: one or several losses, each with a backward pass of its own.

piecewise          every potential by its own likelihood (paper, section 5); independent losses
pseudo_likelihood  each node's label given the labels of all others (paper, appendix, eq. 14-18)
end_to_end         each node's label under the marginals of mean field, unrolled

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
from torch.nn import functional

from deepcrf_ext.config import ObjectiveName
from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.nn.node_losses import node_labels, node_nll, node_weights, weighted_mean
from deepcrf_ext.nn.pairwise_crf import log_marginals
from deepcrf_ext.ops.potentials import Potential
from deepcrf_ext.ops.pseudo_likelihood import pseudo_likelihood_nll


class Loss(Protocol):
    """One backward pass; `name` is what the loss is logged as."""

    @property
    def name(self) -> str: ...

    @property
    def potentials(self) -> tuple[str, ...]:
        """Names of the potentials whose networks no other loss of the step uses."""

    def mean(self, model: DeepCRF, inputs: list[Tensor], labels: Tensor) -> Tensor:
        """The scalar loss of a batch, as `model.inputs` gives it, with labels int64 [B, H, W]."""

    def count(self, model: DeepCRF, labels: Tensor) -> Tensor:
        """The nodes or edges of these labels the mean is taken over, by weight, a scalar."""


@dataclass(frozen=True)
class PotentialLoss:
    """The piecewise loss of one potential."""

    name: str

    @property
    def potentials(self) -> tuple[str, ...]:
        return (self.name,)

    def mean(self, model: DeepCRF, inputs: list[Tensor], labels: Tensor) -> Tensor:
        return model.loss(self.name, inputs, labels)

    def count(self, model: DeepCRF, labels: Tensor) -> Tensor:
        return model.loss_count(self.name, labels)


@dataclass(frozen=True)
class CRFLoss:
    """A loss of the nodes of a CRF whose potentials train together.

    unary_loss: what the unary's own likelihood counts beside it.
    """

    name: str
    variant: Variant
    objective: ObjectiveName
    unary_loss: float = 0.0

    @property
    def potentials(self) -> tuple[str, ...]:
        return self.variant.potentials

    def mean(self, model: DeepCRF, inputs: list[Tensor], labels: Tensor) -> Tensor:
        energies = model.energies_of(inputs, self.variant.potentials)
        nodes = node_labels(labels, energies.grid[1:])
        unary, potentials = model.crf(energies, self.variant)
        if self.objective == "pseudo_likelihood":
            energies_of_nodes = unary.to(potentials[0].dtype) if potentials else unary
            values = pseudo_likelihood_nll(
                energies_of_nodes, potentials, nodes, IGNORE_INDEX, reduction="none"
            ).float()
            weights = node_weights(nodes, model.class_weights, IGNORE_INDEX)
            value = weighted_mean(values, weights)
        else:
            value = mean_field_nll(
                unary, potentials, nodes, model.config.iterations, model.class_weights
            )
        if self.unary_loss and self.variant.unary is not None:
            alone = node_nll(unary, nodes, model.class_weights, IGNORE_INDEX)
            value = value + self.unary_loss * alone
        return value

    def count(self, model: DeepCRF, labels: Tensor) -> Tensor:
        return model.node_count(labels)


def mean_field_nll(
    unary: Tensor,
    potentials: Sequence[Potential],
    labels: Tensor,
    iterations: int,
    class_weights: Tensor | None = None,
) -> Tensor:
    """-log Q_p(y_p) of the marginals Q of `deepcrf_ext.mean_field`, mean over valid nodes.

    Arguments as there, labels [N] (255 = ignore) and what each class counts, [K]. Differentiable
    through all iterations, in log space (`log_marginals`).
    """
    logs = log_marginals(unary, potentials, iterations)
    values = functional.nll_loss(logs, labels, ignore_index=IGNORE_INDEX, reduction="none")
    return weighted_mean(values, node_weights(labels, class_weights, IGNORE_INDEX))


def make_losses(
    objective: ObjectiveName, model: DeepCRF, potentials: Sequence[str], unary_loss: float = 0.0
) -> tuple[Loss, ...]:
    """The losses of a step that trains these potentials of a model.

    Piecewise there is one for each of them. Otherwise there is one for the CRF of the model
    (`DeepCRF.default_variant`, which must be among them), with its unary's own likelihood times
    `unary_loss`, and one for each further unary.
    """
    if objective == "piecewise":
        return tuple(PotentialLoss(name) for name in potentials)
    variant = model.default_variant()
    others = (name for name in potentials if name not in variant.potentials)
    crf = CRFLoss(model.name_of(variant), variant, objective, unary_loss)
    return (crf, *(PotentialLoss(name) for name in others))


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
    normalisation, whose statistics are those of each part (of all processes together).
    """
    return (counts / totals.where(totals > 0, 1)[:, None]).float()
