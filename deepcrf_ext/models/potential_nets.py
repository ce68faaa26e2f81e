"""The potential networks (paper, sections 3.1 and 4.1): node features to energies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepcrf_ext.config import ModelConfig
from deepcrf_ext.models.features import FeatureNet
from deepcrf_ext.ops.graph import EdgeGraph
from deepcrf_ext.ops.potentials import FactoredPotential


class UnaryNet(nn.Module):
    """Features -> fully connected, ReLU -> fully connected: energies of K labels a node."""

    def __init__(self, config: ModelConfig, num_classes: int, num_scales: int) -> None:
        super().__init__()
        self.features = FeatureNet(config, num_scales)
        self.hidden = nn.Linear(self.features.channels, config.hidden)
        self.output = nn.Linear(config.hidden, num_classes)

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Energies [B, h, w, K], float32."""
        hidden = self.hidden(self.features(scales)).relu()
        with torch.autocast(hidden.device.type, enabled=False):
            energies: Tensor = self.output(hidden.float())
        return energies


class PairwiseNet(nn.Module):
    """Features of two nodes in order -> fully connected, ReLU -> fully connected: K x K energies.

    The first layer on the concatenated features [f_p ; f_q] is kept as its two halves: it is
    applied to every node rather than to every edge (`FactoredPotential`).
    """

    def __init__(self, config: ModelConfig, num_classes: int, num_scales: int) -> None:
        super().__init__()
        self.features = FeatureNet(config, num_scales)
        channels = self.features.channels
        self.source = nn.Linear(channels, config.pairwise_hidden)
        self.target = nn.Linear(channels, config.pairwise_hidden, bias=False)
        bound = (2 * channels) ** -0.5
        for parameter in (self.source.weight, self.source.bias, self.target.weight):
            nn.init.uniform_(parameter, -bound, bound)
        bound = config.pairwise_hidden**-0.5
        size = (num_classes, num_classes)
        self.weight = nn.Parameter(
            torch.empty(*size, config.pairwise_hidden).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(size).uniform_(-bound, bound))

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

    def forward(self, scales: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The two projections of every node, each float32 [B, h, w, D]."""
        features = self.features(scales)
        return self.source(features).float(), self.target(features).float()

    def potential(self, graph: EdgeGraph, source: Tensor, target: Tensor) -> FactoredPotential:
        """The energies over the edges of a graph of B·h·w nodes, from what `forward` returns."""
        return FactoredPotential(
            graph, source.flatten(0, 2), target.flatten(0, 2), self.weight, self.bias
        )
