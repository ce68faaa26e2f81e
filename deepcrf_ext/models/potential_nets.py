"""The potential networks (paper, sections 3.1 and 4.1): features of nodes to energies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcrf_ext.config import ModelConfig
from deepcrf_ext.models.features import BackboneFeatures, FeatureNet
from deepcrf_ext.nn.pairwise_potential import PairwisePotential, check_features
from deepcrf_ext.ops.potentials import FactoredPotential

Features = FeatureNet | BackboneFeatures
_NO_WEIGHT = 1e-30  # stands for the weight 0, which has no logarithm


@dataclass(frozen=True)
class CRFEnergies:
    """Energies of a batch of images whose node grids have one size, grid = (B, h, w).

    unaries: by potential name [B·h·w, K]; pairwise: by relation name.
    """

    unaries: dict[str, Tensor]
    pairwise: dict[str, FactoredPotential]
    grid: tuple[int, int, int]


class UnaryNet(nn.Module):
    """Features -> fully connected, ReLU -> fully connected: energies of K labels a node."""

    def __init__(self, config: ModelConfig, num_classes: int, features: Features) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(self.features.channels, config.hidden)
        self.output = nn.Linear(config.hidden, num_classes)

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Energies [B, h, w, K], float32."""
        features = self.features(scales)
        check_features(features, self.hidden.weight)
        hidden = self.hidden(features).relu()
        with torch.autocast(hidden.device.type, enabled=False):
            energies: Tensor = self.output(hidden.to(self.output.weight.dtype))
        return energies


class PairwiseNet(PairwisePotential):
    """A `PairwisePotential` with the network of its features, and a weight.

    Attributes:
        features: the network: scales of an image -> features [B, h, w, C].
        log_weight: the logarithm of what the energies are multiplied by in a CRF with other
            potentials, []. As a logarithm, as the weight is learnt over orders of magnitude: the
            energies of all edges of a node add up.
    """

    def __init__(self, config: ModelConfig, num_classes: int, features: Features) -> None:
        super().__init__(features.channels, num_classes, config.pairwise_hidden)
        self.features = features
        self.log_weight = nn.Parameter(torch.tensor(math.log(config.relation_weight)))

    def reset_parameters(self) -> None:
        """Draws the layers on the features anew, as linear layers are: energies are not small."""
        bound = (2 * self.in_channels) ** -0.5
        for parameter in (self.source.weight, self.source.bias, self.target.weight):
            nn.init.uniform_(parameter, -bound, bound)
        bound = self.hidden**-0.5
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def energy_weight(self) -> float:
        """What the energies are multiplied by in a CRF."""
        weight = self.log_weight.exp().item()
        return weight if weight > 2 * _NO_WEIGHT else 0.0

    @energy_weight.setter
    @torch.no_grad()
    def energy_weight(self, weight: float) -> None:
        self.log_weight.fill_(max(weight, _NO_WEIGHT)).log_()

    def weighted(self, potential: FactoredPotential) -> FactoredPotential:
        """A potential that this network made, its energies times the weight."""
        return potential.scaled(self.log_weight.exp())

    @torch.no_grad()
    def start_from(self, unary: UnaryNet) -> None:
        """Starts from a trained unary on the same scales, as if two nodes were independent.

        The features are copied, and V_pq(k, j) becomes U_p(k) + U_q(j): some hidden units see p
        alone, as many q alone. Training then adds what the labels say of each other. Further
        units start without a say. Needs ``pairwise_hidden >= 2 * hidden``.
        """
        self.features.load_state_dict(unary.features.state_dict())
        count = unary.hidden.out_features
        first, second = slice(0, count), slice(count, 2 * count)
        for parameter in (self.source.weight, self.target.weight, self.source.bias):
            parameter[: 2 * count] = 0
        self.source.weight[first] = unary.hidden.weight
        self.target.weight[second] = unary.hidden.weight
        self.source.bias[first] = unary.hidden.bias
        self.source.bias[second] = unary.hidden.bias
        self.weight.zero_()
        self.weight[:, :, first] = unary.output.weight[:, None]
        self.weight[:, :, second] = unary.output.weight[None]
        self.bias.copy_(unary.output.bias[:, None] + unary.output.bias)
