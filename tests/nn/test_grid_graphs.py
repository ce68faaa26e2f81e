"""The cache of graphs by size."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from deepcrf_ext import EdgeGraph, InputError, RangeBox, TablePotential, pairwise_messages
from deepcrf_ext.nn import RelationConfig, grid_graphs
from deepcrf_ext.nn.grid_graphs import GraphCache, relation_graph
from deepcrf_ext.ops._flat_tensors import graph_tensors

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


def test_relations_that_are_the_same_box_share_a_graph() -> None:
    device = torch.device("cpu")
    named = relation_graph(RelationConfig("surrounding", 0.4, 0.4), 2, 10, 12, device)
    offsets = RelationConfig("offsets", offsets=(-2, 2, -2, 2))
    assert relation_graph(offsets, 2, 10, 12, device) is named


def test_no_image_gives_a_graph_without_nodes() -> None:
    graph = relation_graph(RelationConfig("surrounding"), 0, 5, 6, torch.device("cpu"))
    assert (graph.num_nodes, graph.num_edges) == (0, 0)


def test_a_graph_beyond_memory_is_refused_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The grid of a crop of 2000 x 2000 pixels at stride 8 and scale 1.2."""
    monkeypatch.setattr(grid_graphs, "available_memory", lambda _: 24 * 10**9)
    with pytest.raises(InputError, match="1,065,279,600 edges, 17.0 GB") as caught:
        relation_graph(RelationConfig("surrounding"), 1, 300, 300, torch.device("cpu"))
    assert "coarser or smaller grid" in str(caught.value)
    relation = RelationConfig("surrounding", 0.4, 0.4, step=100)
    graph = relation_graph(relation, 1, 300, 300, torch.device("cpu"))  # step leaves no edge
    assert graph.num_edges == 0


def test_threads_share_the_cache() -> None:
    relation, device = RelationConfig("above_below", 0.9, 0.9), torch.device("cpu")
    sizes = [(h, w) for h in range(1, 9) for w in range(1, 9)] * 4

    def edges(size: tuple[int, int]) -> int:
        return relation_graph(relation, 2, *size, device).num_edges

    with ThreadPoolExecutor(8) as threads:
        counts = list(threads.map(edges, sizes))
    assert counts == [2 * relation.box(*size).num_edges(*size) for size in sizes]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_a_thread_holds_the_cache_can_use_it() -> None:
    """The fork waits for the other threads' calls, so that the child's lock is free."""
    cache = GraphCache(max_bytes=1 << 20)
    cache.put(0, EdgeGraph.from_range_box(3, 3, BOX))
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            cache.get(0)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if cache.get(0) is not None else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "relation",
    [RelationConfig("above_below", 0.3, 0.4), RelationConfig("offsets", 1, 1, (-2, 2, 0, 4), 2)],
)
def test_compiled_code_builds_the_same_graph(relation: RelationConfig) -> None:
    cpu = torch.device("cpu")
    arguments = (relation.kind, relation.width, relation.height, relation.offsets, relation.step)
    torch.library.opcheck(grid_graphs.relation_edges, (*arguments, 2, 5, 6, cpu))

    def tensors(nodes: torch.Tensor) -> list[torch.Tensor]:
        return graph_tensors(relation_graph(relation, *nodes.shape, nodes.device))

    torch.compiler.reset()
    compiled = torch.compile(tensors, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((2, 5, 6), (3, 8, 7)):
        nodes = torch.zeros(size)
        for found, wanted in zip(compiled(nodes), tensors(nodes), strict=True):
            assert torch.equal(found, wanted)
