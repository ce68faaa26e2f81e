"""The layer from features of nodes to pairwise energies, on any graph."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from deepcrf_ext import EdgeGraph, FactoredPotential, mean_field, pairwise_nll
from deepcrf_ext.nn import PairwisePotential


def fully_connected_energies(layer: PairwisePotential, features: Tensor, edges: Tensor) -> Tensor:
    """The paper's network: concatenated features of each edge through two dense layers."""
    joined = torch.cat([features[edges[0]], features[edges[1]]], 1)
    first = torch.cat([layer.source.weight, layer.target.weight], 1)
    hidden = functional.linear(joined, first, layer.source.bias).relu()
    flat = functional.linear(hidden, layer.weight.flatten(0, 1), layer.bias.flatten())
    return flat.unflatten(1, layer.bias.shape)


def spread(layer: PairwisePotential) -> PairwisePotential:
    """The layer with energies far from 0."""
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def nearest_neighbours(points: Tensor, count: int) -> EdgeGraph:
    near = torch.cdist(points, points).topk(count + 1, largest=False).indices[:, 1:]
    sources = torch.arange(len(points)).repeat_interleave(count)
    return EdgeGraph.from_edges(sources, near.flatten(), len(points))


def superpixels(segments: Tensor) -> EdgeGraph:
    """Segments [H, W] that touch, in both orders."""
    pairs = [
        torch.stack([first.flatten(), second.flatten()])
        for first, second in ((segments[1:], segments[:-1]), (segments[:, 1:], segments[:, :-1]))
    ]
    ends = torch.cat([*pairs, *(pair.flip(0) for pair in pairs)], 1)
    ends = ends[:, ends[0] != ends[1]].unique(dim=1)
    return EdgeGraph.from_edges(ends[0], ends[1], int(segments.max()) + 1)


def mesh(triangles: Tensor, vertices: int) -> EdgeGraph:
    sides = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).T
    return EdgeGraph.from_edges(sides[0], sides[1], vertices)


def graphs() -> dict[str, EdgeGraph]:
    random = torch.Generator().manual_seed(0)
    blocks = torch.arange(12).view(3, 4).repeat_interleave(5, 0).repeat_interleave(6, 1)
    triangles = torch.randint(9, (14, 3), generator=random)
    return {
        "nearest neighbours": nearest_neighbours(torch.rand(15, 3, generator=random), 4),
        "superpixels": superpixels(blocks),
        "mesh with self loops, duplicates and a lone vertex": mesh(triangles, 10),
        "batch": EdgeGraph.batch([superpixels(blocks), mesh(triangles, 10)]),
        "no edge": EdgeGraph.from_edges(*torch.empty(2, 0, dtype=torch.int64), 3),
        "no node": EdgeGraph.from_edges(*torch.empty(2, 0, dtype=torch.int64), 0),
    }


@pytest.mark.parametrize("name", graphs())
def test_energies_are_those_of_a_network_on_the_features_of_both_ends(name: str) -> None:
    torch.manual_seed(0)
    graph = graphs()[name]
    layer = spread(PairwisePotential(7, 4, hidden=9).double())
    features = torch.randn(graph.num_nodes, 7, dtype=torch.float64)
    potential = layer(features, graph)
    wanted = fully_connected_energies(layer, features, graph.edge_index())
    torch.testing.assert_close(potential.energies(), wanted)
    unary = torch.randn(graph.num_nodes, 4, dtype=torch.float64)
    marginals = oracle.mean_field(oracle.array(unary), [oracle.edges(potential)], 3)
    np.testing.assert_allclose(oracle.array(mean_field(unary, [potential], 3)), marginals)


def test_every_parameter_and_the_features_get_the_gradient_of_the_network() -> None:
    torch.manual_seed(0)
    graph = graphs()["superpixels"]
    layer = spread(PairwisePotential(5, 3, hidden=8).double())
    features = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (12,))
    sources, targets = graph.edge_index()
    wanted_loss = functional.cross_entropy(
        -fully_connected_energies(layer, features, graph.edge_index()).flatten(1),
        3 * labels[sources] + labels[targets],
    )
    loss = pairwise_nll(layer(features, graph), labels)
    torch.testing.assert_close(loss, wanted_loss)
    inputs = [features, *layer.parameters()]
    found, wanted = (torch.autograd.grad(value, inputs) for value in (loss, wanted_loss))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_potential_is_an_argument_of_a_checkpoint(reentrant: bool) -> None:
    torch.manual_seed(0)
    layer, graph = spread(PairwisePotential(4, 3, hidden=6)), graphs()["superpixels"]
    features, unary = torch.randn(graph.num_nodes, 4), torch.randn(graph.num_nodes, 3)

    def marginals(unary: Tensor, potential: FactoredPotential) -> Tensor:
        return mean_field(unary, [potential])

    unary.requires_grad_()
    wanted = marginals(unary, layer(features, graph)).square().sum()
    found = checkpoint(marginals, unary, layer(features, graph), use_reentrant=reentrant)
    inputs = [unary, *layer.parameters()]
    gradients = torch.autograd.grad(wanted, inputs)
    found.square().sum().backward()
    torch.testing.assert_close([own.grad for own in inputs], list(gradients))
    if reentrant:
        with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
            checkpoint(marginals, unary.detach(), layer(features, graph), use_reentrant=True)


def test_a_fresh_layer_says_next_to_nothing_but_can_learn() -> None:
    torch.manual_seed(0)
    graph = graphs()["nearest neighbours"]
    layer = PairwisePotential(7, 4)
    potential = layer(torch.randn(15, 7), graph)
    assert potential.energies().abs().max() < 0.05
    pairwise_nll(potential, torch.randint(4, (15,))).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_a_fresh_layer_is_drawn_as_a_linear_one_on_both_nodes() -> None:
    torch.manual_seed(0)
    layer = PairwisePotential(8, 1, hidden=500)
    for parameter in (layer.source.weight, layer.source.bias, layer.target.weight):
        assert 0.24 < parameter.abs().max() <= 0.25  # 1 / sqrt(2 · 8)
    assert layer.bias.tolist() == [[0.0]]
    assert layer.weight.std() < 0.1


def test_reset_parameters_draws_all_anew() -> None:
    torch.manual_seed(0)
    layer = spread(PairwisePotential(7, 4, hidden=9))
    fresh = PairwisePotential(7, 4, hidden=9)
    for each in (layer, fresh):
        torch.manual_seed(1)
        each.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), fresh.state_dict(), rtol=0, atol=0)


def test_state_and_copies_keep_the_layer() -> None:
    torch.manual_seed(0)
    graph, features = graphs()["superpixels"], torch.randn(12, 5)
    layer = spread(PairwisePotential(5, 3))
    other = PairwisePotential(5, 3)
    other.load_state_dict(layer.state_dict())
    for same in (other, copy.deepcopy(layer)):
        assert torch.equal(same(features, graph).energies(), layer(features, graph).energies())
    assert repr(layer).startswith(
        "PairwisePotential(\n  in_channels=5, num_classes=3, hidden=128\n"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_and_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    graph, features = graphs()["superpixels"], torch.randn(12, 5)
    layer = spread(PairwisePotential(5, 3))
    exact = layer(features, graph).energies()
    with torch.autocast("cpu", dtype):
        potential = layer(features, graph)
        pairwise_nll(potential, torch.zeros(12, dtype=torch.int64)).backward()
    assert potential.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    narrow = copy.deepcopy(layer).to(dtype)(features.to(dtype), graph)
    for energies in (potential.energies(), narrow.energies()):
        torch.testing.assert_close(energies.float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("features", "graph", "error", "named"),
    [
        (torch.zeros(12, 5), None, TypeError, "graph: got NoneType"),
        (torch.zeros(12, 4), "superpixels", ValueError, r"features: got shape \[12, 4\].*C = 5"),
        (torch.zeros(11, 5), "superpixels", ValueError, r"features: got shape \[11, 5\].*N = 12"),
        (torch.zeros(12, 5, 1), "superpixels", ValueError, "features: got shape"),
        (
            torch.zeros(12, 5).double(),
            "superpixels",
            TypeError,
            "features: got dtype torch.float64",
        ),
        (torch.zeros(12, 5).long(), "superpixels", TypeError, "features: got dtype torch.int64"),
        (torch.zeros(12, 5, device="meta"), "superpixels", ValueError, "features: got device"),
        ([[0.0] * 5] * 12, "superpixels", TypeError, "features: got list"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    features: Any, graph: str | None, error: type[Exception], named: str
) -> None:
    layer = PairwisePotential(5, 3)
    with pytest.raises(error, match=named):
        layer(features, graphs()[graph] if graph else None)


@pytest.mark.parametrize("wide", ["features", "layer"])
def test_autocast_does_not_mix_float64_with_others(wide: str) -> None:
    layer, features = PairwisePotential(5, 3), torch.zeros(12, 5)
    if wide == "layer":
        layer.double()
    else:
        features = features.double()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TypeError, match=r"features: got dtype .*, must be .* as the layer"),
    ):
        layer(features, graphs()["superpixels"])


@pytest.mark.parametrize(
    ("sizes", "error", "named"),
    [
        ((0, 3), ValueError, "in_channels: got 0"),
        ((5, -1), ValueError, "num_classes: got -1"),
        ((5, 3, 0), ValueError, "hidden: got 0"),
        ((5, 3.0), TypeError, "num_classes: got float"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    sizes: tuple[Any, ...], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        PairwisePotential(*sizes)
