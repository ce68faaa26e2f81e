"""Layer `PairwisePotential`: from features of nodes to the energies of the edges between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcrf_ext.ops._argument_checks import check_same_precision
from deepcrf_ext.ops._number_checks import checked_int
from deepcrf_ext.ops._tensor_checks import check_device, check_floating, check_tensor
from deepcrf_ext.ops.graph import EdgeGraph
from deepcrf_ext.ops.potentials import FactoredPotential

_OUTPUT_STD = 1e-3


class PairwisePotential(nn.Module):
    """A network of two nodes' features that gives an energy to each pair of their labels.

    The features of the two nodes, concatenated in the order of the edge, go through a hidden layer
    with a ReLU to K² outputs (arXiv:1504.01013v2, section 4.1). The hidden layer is kept as its
    two halves, applied to every node rather than to every edge. Any graph will do: grids,
    superpixels, meshes, nearest neighbours; nodes without an edge too.

    Args:
        in_channels: C, features of a node.
        num_classes: K, labels.
        hidden: D, width of the hidden layer.

    Attributes:
        source: linear layer C -> D on the first node of an edge, with the bias of the hidden layer.
        target: linear layer C -> D on the second.
        weight: [K, K, D], by the label of the first node, then of the second. Started small: the
            energies of a fresh layer are close to 0.
        bias: [K, K].

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        Three superpixels in a row, and the loss of their labels:

        >>> import torch
        >>> from deepcrf_ext import EdgeGraph, nn as crf, mean_field, pairwise_nll
        >>> graph = EdgeGraph.from_edges(torch.tensor([0, 1]), torch.tensor([1, 2]), num_nodes=3)
        >>> layer = crf.PairwisePotential(in_channels=8, num_classes=4)
        >>> potential = layer(torch.randn(3, 8), graph)
        >>> loss = pairwise_nll(potential, torch.tensor([0, 0, 3]))
        >>> mean_field(torch.randn(3, 4), [potential]).shape
        torch.Size([3, 4])
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.in_channels = checked_int("in_channels", in_channels, at_least=1)
        self.num_classes = checked_int("num_classes", num_classes, at_least=1)
        self.hidden = checked_int("hidden", hidden, at_least=1)
        self.source = nn.Linear(self.in_channels, self.hidden)
        self.target = nn.Linear(self.in_channels, self.hidden, bias=False)
        self.weight = nn.Parameter(torch.empty(self.num_classes, self.num_classes, self.hidden))
        self.bias = nn.Parameter(torch.empty(self.num_classes, self.num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        bound = (2 * self.in_channels) ** -0.5  # of a linear layer on both nodes' features
        for parameter in (self.source.weight, self.source.bias, self.target.weight):
            nn.init.uniform_(parameter, -bound, bound)
        nn.init.normal_(self.weight, std=_OUTPUT_STD)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor, graph: EdgeGraph) -> FactoredPotential:
        """The energies over the edges of a graph.

        Args:
            features: [N, C], in the dtype of the layer (under autocast in any,
                except from or to float64).
            graph: N nodes, on the device of the layer.

        Returns:
            The potential, in the dtype of the layer (under autocast, that of autocast).

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        if not isinstance(graph, EdgeGraph):
            raise TypeError(f"graph: got {type(graph).__name__}, must be an EdgeGraph")
        check_tensor("features", features, "N C", {"N": graph.num_nodes, "C": self.in_channels})
        check_features(features, self.weight)
        check_device("graph", graph.device, features.device, "features")
        source, target = self.source(features), self.target(features)
        weight, bias = self.weight.to(source.dtype), self.bias.to(source.dtype)
        return FactoredPotential(graph, source, target, weight, bias)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, num_classes={self.num_classes}, hidden={self.hidden}"
        )


def check_features(features: Tensor, parameter: Tensor) -> None:
    """Check that a layer with this parameter can take features of this dtype, on this device."""
    check_floating("features", features)
    check_device("features", features.device, parameter.device, "the layer")
    device = features.device
    check_same_precision("features", features.dtype, parameter.dtype, "the layer", device)
