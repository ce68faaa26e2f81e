"""The graphs of relations over grids, and that they are kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from registered import opcheck
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from deepcrf_ext import InputError, RangeBox, TablePotential, pairwise_messages
from deepcrf_ext.nn import RelationConfig, grid_graphs
from deepcrf_ext.nn.grid_graphs import relation_graph
from deepcrf_ext.nn.relations import NAMED_RELATIONS
from deepcrf_ext.ops._flat_tensors import graph_tensors


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
    with pytest.raises(InputError, match="1,065,279,600 edges, 21.3 GB") as caught:
        relation_graph(RelationConfig("surrounding"), 1, 300, 300, torch.device("cpu"))
    assert "coarser or smaller grid" in str(caught.value)
    relation = RelationConfig("surrounding", 0.4, 0.4, step=100)
    graph = relation_graph(relation, 1, 300, 300, torch.device("cpu"))  # step leaves no edge
    assert graph.num_edges == 0


def test_a_graph_may_take_a_third_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    box, cpu = RangeBox(-1, 1, -1, 1), torch.device("cpu")
    assert box.num_edges(3, 3) == 40
    needed = 3 * 2 * (20 * 40 + 16 * 9)  # of two grids
    monkeypatch.setattr(grid_graphs, "available_memory", lambda _: needed)
    grid_graphs.check_memory(box, 2, 3, 3, cpu)
    monkeypatch.setattr(grid_graphs, "available_memory", lambda _: needed - 1)
    with pytest.raises(InputError, match="80 edges"):
        grid_graphs.check_memory(box, 2, 3, 3, cpu)


def test_threads_share_the_cache() -> None:
    relation, device = RelationConfig("above_below", 0.9, 0.9), torch.device("cpu")
    sizes = [(h, w) for h in range(1, 9) for w in range(1, 9)] * 4

    def edges(size: tuple[int, int]) -> int:
        return relation_graph(relation, 2, *size, device).num_edges

    with ThreadPoolExecutor(8) as threads:
        counts = list(threads.map(edges, sizes))
    assert counts == [2 * relation.box(*size).num_edges(*size) for size in sizes]


@pytest.mark.parametrize(
    "relation",
    [RelationConfig("above_below", 0.3, 0.4), RelationConfig("offsets", 1, 1, (-2, 2, 0, 4), 2)],
)
def test_compiled_code_builds_the_same_graph(relation: RelationConfig) -> None:
    cpu = torch.device("cpu")
    arguments = (relation.kind, relation.width, relation.height, relation.offsets, relation.step)
    opcheck(grid_graphs.relation_edges, (*arguments, 2, 5, 6, cpu))

    def tensors(nodes: torch.Tensor) -> list[torch.Tensor]:
        return graph_tensors(relation_graph(relation, *nodes.shape, nodes.device))

    torch.compiler.reset()
    compiled = torch.compile(tensors, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((2, 5, 6), (3, 8, 7)):
        nodes = torch.zeros(size)
        for found, wanted in zip(compiled(nodes), tensors(nodes), strict=True):
            assert torch.equal(found, wanted)


def test_compiled_code_knows_the_edges_of_a_size_that_it_knows() -> None:
    """So that nothing breaks its graph there."""

    def targets(nodes: torch.Tensor) -> torch.Tensor:
        graph = relation_graph(NAMED_RELATIONS["surrounding"], *nodes.shape, nodes.device)
        return graph.targets

    backend = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    nodes = torch.zeros(2, 5, 6)
    found = torch.compile(targets, backend=backend, dynamic=False)(nodes)
    assert torch.equal(found, targets(nodes))
    assert backend.frame_count == 1


@pytest.mark.parametrize("relation", NAMED_RELATIONS.values(), ids=NAMED_RELATIONS)
def test_compiled_code_takes_a_size_it_may_not_leave_open(relation: RelationConfig) -> None:
    """Without `fullgraph=True` a graph may hold no size that is known when it runs."""

    def messages(marginals: Tensor) -> Tensor:
        batch, height, width, labels = marginals.shape
        graph = relation_graph(relation, batch, height, width, marginals.device)
        energies = torch.ones(graph.num_edges, labels, labels)
        return pairwise_messages(TablePotential(graph, energies), marginals.flatten(0, 2))

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(messages, backend=counter)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=False):
        for index, (height, width) in enumerate(((4, 5), (6, 3), (5, 7))):
            marginals = torch.rand(2, height, width, 3)
            assert torch.equal(compiled(marginals), messages(marginals))
            assert counter.frame_count == index + 1
