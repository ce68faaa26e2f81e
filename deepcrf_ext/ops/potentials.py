"""Pairwise potentials: one K x K table of energies for every edge of a graph.

Energies are costs, P(y | x) ∝ exp(-E), as in Lin, Shen, Reid and van den Hengel, "Efficient
Piecewise Training of Deep Structured Models for Semantic Segmentation" (arXiv:1504.01013v2). They
are finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deepcrf_ext.ops._autocast import autocast_dtype
from deepcrf_ext.ops._loading import loadable
from deepcrf_ext.ops._number_checks import is_number
from deepcrf_ext.ops._tensor_checks import check_device, check_dtype, check_floating, check_tensor
from deepcrf_ext.ops.graph import EdgeGraph


@dataclass(frozen=True, eq=False)
class FactoredPotential:
    """The paper's pairwise network with its first layer split into one projection a node and end.

    The energy of edge (p, q) with labels (k, j) is
    `V_pq(k, j) = weight[k, j] · relu(source[p] + target[q]) + bias[k, j]`.
    Any strides are accepted. Tensors share one floating-point dtype and the graph's device. Under
    `torch.autocast`, tensors of different dtypes, none of them float64, are converted to its dtype,
    as the operands of a matrix product.

    Args:
        graph: the edges (p, q).
        source: [N, D], the projection of each node as first end p, hidden bias included.
        target: [N, D], the projection of each node as second end q.
        weight: [K, K, D], indexed by the label of p, then the label of q.
        bias: [K, K].

    Raises:
        TypeError: an argument is of another type or dtype.
        ValueError: shapes or devices do not fit; K and D must be at least 1.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> graph = dc.EdgeGraph.from_range_box(4, 5, dc.RangeBox.surrounding(4, 5))
        >>> source, target = torch.randn(20, 8), torch.randn(20, 8)
        >>> potential = dc.FactoredPotential(
        ...     graph, source, target, weight=torch.randn(3, 3, 8), bias=torch.zeros(3, 3)
        ... )
        >>> potential.energies().shape == (graph.num_edges, 3, 3)
        True
    """

    graph: EdgeGraph
    source: Tensor
    target: Tensor
    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        _check_graph(self.graph)
        sizes = {"N": self.graph.num_nodes}
        check_tensor("source", self.source, "N D", sizes)
        check_floating("source", self.source)
        check_tensor("target", self.target, "N D", sizes)
        check_tensor("weight", self.weight, "K K D", sizes)
        check_tensor("bias", self.bias, "K K", sizes)
        tensors = {name: getattr(self, name) for name in ("source", "target", "weight", "bias")}
        dtypes = {tensor.dtype for tensor in tensors.values()}
        common = autocast_dtype(self.graph.device)
        for name, tensor in tensors.items():
            check_device(name, tensor.device, self.graph.device, "graph")
            if len(dtypes) > 1 and common is not None and torch.float64 not in dtypes:
                check_floating(name, tensor)
                object.__setattr__(self, name, tensor.to(common))
            else:
                check_dtype(name, tensor.dtype, self.source.dtype, "source")

    @property
    def num_labels(self) -> int:
        """K, the number of labels."""
        return self.bias.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every tensor of the potential."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        """The device of every tensor of the potential."""
        return self.source.device

    def energies(self) -> Tensor:
        """All energies, [E, K, K], differentiable. E · K² values: for inspection and reference."""
        return self.energies_between(*self.graph.edge_index())

    def scaled(self, weight: Tensor | float) -> FactoredPotential:
        """The potential with all its energies times a weight [], differentiable in both.

        K² · D products, whatever the number of edges.

        Raises:
            TypeError, ValueError: the weight is no number and no tensor of one.
        """
        if isinstance(weight, Tensor):
            check_tensor("weight", weight, "", {})
        elif not is_number(weight):
            raise TypeError(f"weight: got {type(weight).__name__}, must be a number or a tensor []")
        return FactoredPotential(
            self.graph, self.source, self.target, self.weight * weight, self.bias * weight
        )

    def energies_between(self, first: Tensor, second: Tensor) -> Tensor:
        """V_pq of any pairs of nodes p and q, int64 [M] each: [M, K, K], differentiable."""
        hidden = (self.source.index_select(0, first) + self.target.index_select(0, second)).relu()
        logits = hidden @ self.weight.flatten(0, 1).t()
        return logits.unflatten(1, self.bias.shape) + self.bias

    def __reduce__(self) -> tuple[Any, ...]:
        return _factored_potential, (self.graph, self.source, self.target, self.weight, self.bias)


@loadable
def _factored_potential(*values: Any) -> FactoredPotential:
    return FactoredPotential(*values)


@dataclass(frozen=True, eq=False, init=False)
class TablePotential:
    """Pairwise energies given as a table, the output of any network. Any strides are accepted.

    Args:
        graph: the edges (p, q).
        energies: [E, K, K], floating point, on the graph's device: `V_pq(k, j)` of every edge,
            in the order of `graph.edge_index()`; kept as `table`. Finite: a pair of labels that is
            to be ruled out gets a large one, such as 1e4, as the expected energy of one of +inf is
            +inf whatever the marginals.

    Raises:
        TypeError: an argument is of another type or dtype.
        ValueError: shape or device do not fit; K must be at least 1.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> graph = dc.EdgeGraph.from_edges(torch.tensor([0, 1]), torch.tensor([1, 2]), num_nodes=3)
        >>> potts = 1 - torch.eye(4)  # what other labels at the ends of an edge cost
        >>> dc.TablePotential(graph, potts.expand(2, 4, 4)).num_labels
        4
    """

    graph: EdgeGraph
    table: Tensor

    def __init__(self, graph: EdgeGraph, energies: Tensor) -> None:
        _check_graph(graph)
        check_tensor("energies", energies, "E K K", {"E": graph.num_edges})
        check_floating("energies", energies)
        check_device("energies", energies.device, graph.device, "graph")
        object.__setattr__(self, "graph", graph)
        object.__setattr__(self, "table", energies)

    @property
    def num_labels(self) -> int:
        """K, the number of labels."""
        return self.table.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the table."""
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        """The device of the table."""
        return self.table.device

    def energies(self) -> Tensor:
        """The table itself, [E, K, K]."""
        return self.table

    def __reduce__(self) -> tuple[Any, ...]:
        return _table_potential, (self.graph, self.table)


@loadable
def _table_potential(*values: Any) -> TablePotential:
    return TablePotential(*values)


Potential: TypeAlias = FactoredPotential | TablePotential


def _check_graph(graph: Any) -> None:
    if not isinstance(graph, EdgeGraph):
        raise TypeError(f"graph: got {type(graph).__name__}, must be an EdgeGraph")
