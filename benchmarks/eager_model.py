"""The whole model as a user would write it in plain PyTorch: float32, NCHW, materialised energies.

It runs the very networks of a `DeepCRF`; what differs is everything around them. The energies of
all edges are a tensor, the losses are summed and go through one backward pass, and the edges of a
grid are made once.
"""

from __future__ import annotations

import torch
from contenders import add_messages, edge_energies
from torch import Tensor
from torch.nn import functional as F

from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.potential_nets import PairwiseNet
from deepcrf_ext.nn.grid_graphs import relation_graph
from deepcrf_ext.nn.node_losses import node_labels

Edges = tuple[Tensor, Tensor]


class EagerCRF:
    """Losses and predictions of a model, which it takes over and changes to contiguous format."""

    def __init__(self, model: DeepCRF) -> None:
        self.model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._edges: dict[tuple[str, int, int, int], Edges] = {}

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The sum of the piecewise losses of images [B, 3, H, W] with labels [B, H, W]."""
        total = images.new_zeros(())
        pyramid = self._pyramid(images)
        for name in self.model.potential_names:
            network, output = self._run(name, pyramid)
            grid = (output[0] if isinstance(network, PairwiseNet) else output).shape[:3]
            nodes = node_labels(labels, grid[1:])
            if not isinstance(network, PairwiseNet):
                total = total + F.cross_entropy(
                    -output.flatten(0, 2), nodes, ignore_index=IGNORE_INDEX
                )
                continue
            first, second = self._edges_of(name, *grid)
            valid = (nodes[first] != IGNORE_INDEX) & (nodes[second] != IGNORE_INDEX)
            pair = nodes[first] * self.model.num_classes + nodes[second]
            table = self._table(network, output, (first, second)).flatten(1)
            total = total + F.cross_entropy(-table, pair.where(valid, -100))
        return total

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Labels [H, W] of an image [3, H, W] by the unary and all relations."""
        pyramid = self._pyramid(image[None])
        row = self.model.default_variant()
        assert row.unary is not None
        output = self._run(row.unary, pyramid)[1]
        grid, unary = output.shape[:3], output.flatten(0, 2)
        tables: list[tuple[Edges, Tensor]] = []
        for name in row.relations:
            network, output = self._run(name, pyramid)
            edges = self._edges_of(name, *grid)
            tables.append((edges, self._table(network, output, edges)))
        marginals = (-unary).softmax(1)
        for _ in range(self.model.config.iterations):
            energies = unary
            for edges, table in tables:
                energies = add_messages(energies, table, marginals, *edges)
            marginals = (-energies).softmax(1)
        nodes = marginals.unflatten(0, grid).permute(0, 3, 1, 2)
        size = image.shape[1:]
        return F.interpolate(nodes, size, mode="bilinear", align_corners=False)[0].argmax(0)

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        normal = (images - self.model.pyramid.mean) / self.model.pyramid.std
        sizes = [[round(s * side) for side in images.shape[2:]] for s in self.model.config.scales]
        return [F.interpolate(normal, size, mode="bilinear") for size in sizes]

    def _run(self, name: str, pyramid: list[Tensor]) -> tuple[torch.nn.Module, Tensor]:
        network = self.model.potentials[name]
        scales = pyramid[:1] if name == "unary_1scale" else pyramid
        if not isinstance(network, PairwiseNet):
            return network, network(scales)
        features = network.features(scales)
        return network, torch.stack([network.source(features), network.target(features)])

    def _edges_of(self, name: str, batch: int, height: int, width: int) -> Edges:
        key = (name, batch, height, width)
        if key not in self._edges:
            device = self.model.device
            graph = relation_graph(self.model.config.relations[name], *key[1:], device)
            first, second = graph.edge_index()
            self._edges[key] = (first, second)
        return self._edges[key]

    def _table(self, network: PairwiseNet, output: Tensor, edges: Edges) -> Tensor:
        """Energies [E, K, K]."""
        source, target = (projection.flatten(0, 2) for projection in output)
        table = edge_energies(source, target, network.weight, network.bias, *edges)
        return table.unflatten(1, network.bias.shape) * network.log_weight.exp()
