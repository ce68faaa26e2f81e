"""The cache of graphs by size."""

from __future__ import annotations

import torch

from deepcrf_ext import TablePotential, pairwise_messages
from deepcrf_ext.config import RelationConfig
from deepcrf_ext.nn.grid_graphs import GraphCache, relation_graph
from deepcrf_ext.ops.graph import EdgeGraph, RangeBox

BOX = RangeBox(-1, 1, -1, 1)


def test_equal_arguments_share_a_graph() -> None:
    relation, device = RelationConfig("surrounding"), torch.device("cpu")
    graph = relation_graph(relation, 2, 5, 6, device)
    assert relation_graph(RelationConfig("surrounding"), 2, 5, 6, device) is graph
    assert relation_graph(relation, 1, 5, 6, device).num_nodes == 30
    assert graph.num_nodes == 60


def test_a_graph_first_used_in_inference_mode_can_be_trained_on() -> None:
    relation, device = RelationConfig("above_below"), torch.device("cpu")
    with torch.inference_mode():
        relation_graph(relation, 1, 4, 7, device)
    graph = relation_graph(relation, 1, 4, 7, device)
    potential = TablePotential(graph, torch.zeros(graph.num_edges, 2, 2, requires_grad=True))
    pairwise_messages(potential, torch.ones(28, 2)).sum().backward()


def test_cache_is_bounded_by_bytes() -> None:
    graphs = [EdgeGraph.from_range_box(4, 5, BOX) for _ in range(4)]
    size = graphs[0].num_bytes
    assert size == 2 * 8 * 21 + (4 + 4 + 8) * graphs[0].num_edges
    cache = GraphCache(max_bytes=2 * size)
    cache.put(0, graphs[0])
    cache.put(1, graphs[1])
    assert cache.get(0) is graphs[0]  # now 1 is the one unused longest
    cache.put(2, graphs[2])
    assert [cache.get(key) for key in range(3)] == [graphs[0], None, graphs[2]]
    assert (len(cache), cache.num_bytes) == (2, 2 * size)


def test_a_graph_above_the_bound_is_kept_alone() -> None:
    small, large = (EdgeGraph.from_range_box(n, n, BOX) for n in (2, 9))
    cache = GraphCache(max_bytes=small.num_bytes)
    cache.put("small", small)
    cache.put("large", large)
    assert cache.get("small") is None
    assert cache.get("large") is large
    cache.put("small", small)
    assert cache.get("large") is None
    assert cache.num_bytes == small.num_bytes
