"""RangeBox and EdgeGraph."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcrf_ext import EdgeGraph, RangeBox


@st.composite
def edge_lists(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int]:
    """Edges with duplicates and self loops, and the number of nodes, 0 included."""
    num_nodes = draw(st.integers(0, 6))
    if num_nodes == 0:
        return [], 0
    node = st.integers(0, num_nodes - 1)
    return draw(st.lists(st.tuples(node, node), max_size=25)), num_nodes


def from_list(edges: list[tuple[int, int]], num_nodes: int) -> EdgeGraph:
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)
    return EdgeGraph.from_edges(index[:, 0], index[:, 1], num_nodes)


def tensors(graph: EdgeGraph) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(graph).items() if isinstance(value, torch.Tensor)}


def assert_consistent(graph: EdgeGraph) -> None:
    """Both directions hold the same edges, in their order, in the dtypes of the contract."""
    assert graph.row_offsets.dtype == graph.reverse_row_offsets.dtype == torch.int64
    assert graph.targets.dtype == graph.reverse_sources.dtype == torch.int32
    assert graph.reverse_edges.dtype == torch.int64
    assert graph.sources.dtype == torch.int32
    source, target = graph.edge_index().tolist()
    assert list(zip(source, target, strict=True)) == sorted(zip(source, target, strict=True))
    for p in range(graph.num_nodes):
        start, end = graph.row_offsets[p : p + 2].tolist()
        assert source[start:end] == [p] * source.count(p)
        start, end = graph.reverse_row_offsets[p : p + 2].tolist()
        in_edges = graph.reverse_edges[start:end].tolist()
        assert in_edges == [e for e in range(graph.num_edges) if target[e] == p]
        assert graph.reverse_sources[start:end].tolist() == [source[e] for e in in_edges]
    assert graph.row_offsets[-1] == graph.reverse_row_offsets[-1] == graph.num_edges


@pytest.mark.parametrize(
    ("height", "width", "half"),
    [
        (1, 1, 1),
        (1, 9, 1),
        (5, 8, 1),
        (9, 5, 1),
        (10, 10, 2),
        (14, 18, 2),
        (15, 40, 3),
        (56, 75, 11),
    ],
)
def test_surrounding(height: int, width: int, half: int) -> None:
    assert RangeBox.surrounding(height, width) == RangeBox(-half, half, -half, half)


@pytest.mark.parametrize(
    ("height", "width", "rows", "half"),
    [(1, 1, 1, 1), (5, 8, 2, 1), (10, 30, 4, 1), (20, 20, 8, 3), (14, 18, 5, 2), (56, 75, 22, 8)],
)
def test_above_below(height: int, width: int, rows: int, half: int) -> None:
    assert RangeBox.above_below(height, width) == RangeBox(1, rows, -half, half)


def test_upper_node_comes_first_in_an_above_below_edge() -> None:
    graph = EdgeGraph.from_range_box(6, 5, RangeBox.above_below(6, 5))
    source, target = graph.edge_index() // 5
    assert (source < target).all()


def test_sizes_of_relations_are_settings() -> None:
    assert RangeBox.surrounding(20, 30, size=1.0) == RangeBox(-10, 10, -10, 10)
    assert RangeBox.above_below(20, 30, box_width=0.5, box_height=1) == RangeBox(1, 20, -5, 5)


def test_number_of_edges_at_the_sizes_of_the_design() -> None:
    for height, width, edges in ((14, 18, 5_124), (28, 36, 100_740), (56, 75, 1_837_308)):
        box = RangeBox.surrounding(height, width)
        assert EdgeGraph.from_range_box(height, width, box).num_edges == edges


@given(edge_lists())
def test_from_edges(case: tuple[list[tuple[int, int]], int]) -> None:
    edges, num_nodes = case
    graph = from_list(edges, num_nodes)
    assert_consistent(graph)
    assert graph.num_nodes == num_nodes
    assert [tuple(edge) for edge in graph.edge_index().T.tolist()] == sorted(edges)
    assert graph.num_self_loops == sum(p == q for p, q in edges)
    by_position = sorted(range(len(edges)), key=lambda position: edges[position])  # stable
    assert graph.edge_order is not None
    assert graph.edge_order.tolist() == by_position


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
def test_from_edges_takes_any_integer_dtype(dtype: torch.dtype) -> None:
    source, target = torch.tensor([2, 0, 199], dtype=dtype), torch.tensor([1, 2, 0], dtype=dtype)
    if dtype == torch.uint8:  # products of node numbers must not wrap in the input's dtype
        assert EdgeGraph.from_edges(source, target, 200).edge_index()[0].tolist() == [0, 2, 199]
    assert_consistent(EdgeGraph.from_edges(source, target, 200))


def box_graph(height: int, width: int) -> EdgeGraph:
    return EdgeGraph.from_range_box(height, width, RangeBox(-1, 2, -1, 1))


def empty_graph(num_nodes: int) -> EdgeGraph:
    """Nodes without an edge, and without data."""
    offsets = torch.empty(num_nodes + 1, dtype=torch.int64, device="meta")
    nodes = torch.empty(0, dtype=torch.int32, device="meta")
    return EdgeGraph(offsets, nodes, offsets, nodes, nodes.long(), nodes)


@given(st.lists(edge_lists(), min_size=1, max_size=4))
def test_batch_of_edge_lists(cases: list[tuple[list[tuple[int, int]], int]]) -> None:
    graph = EdgeGraph.batch([from_list(*case) for case in cases])
    shifted, first_node = [], 0
    for edges, num_nodes in cases:
        shifted += [(first_node + p, first_node + q) for p, q in edges]
        first_node += num_nodes
    union = from_list(shifted, first_node)
    assert_consistent(graph)
    assert graph.num_self_loops == union.num_self_loops
    for name, tensor in tensors(union).items():
        assert torch.equal(getattr(graph, name), tensor), name


def test_batch_of_range_boxes_of_different_sizes() -> None:
    parts = [box_graph(3, 4), box_graph(0, 5), box_graph(1, 1), box_graph(4, 2)]
    graph = EdgeGraph.batch(parts)
    assert_consistent(graph)
    expected = [parts[i].edge_index() + shift for i, shift in enumerate([0, 12, 12, 13])]
    assert torch.equal(graph.edge_index(), torch.cat(expected, dim=1))
    assert graph.edge_order is None


def test_batch_of_both_kinds_keeps_the_input_order_of_each() -> None:
    first, second = box_graph(2, 2), from_list([(1, 0), (0, 1)], 2)
    order = EdgeGraph.batch([first, second]).edge_order
    assert order is not None
    assert order.tolist() == [*range(first.num_edges), first.num_edges + 1, first.num_edges]


def test_to_and_repr_and_pickle() -> None:
    graph = box_graph(3, 4)
    assert graph.to("cpu") is graph
    on_meta = from_list([(0, 1)], 2).to("meta")
    assert on_meta.device.type == "meta"
    assert len(tensors(on_meta)) == 7
    assert all(tensor.device.type == "meta" for tensor in tensors(on_meta).values())
    assert from_list([(1, 1)], 2).to("meta").num_self_loops == 1
    assert repr(graph) == f"EdgeGraph(num_nodes=12, num_edges={graph.num_edges}, device='cpu')"
    assert torch.equal(pickle.loads(pickle.dumps(graph)).targets, graph.targets)


def test_is_an_input_of_compiled_code() -> None:
    def total(graph: EdgeGraph, values: torch.Tensor) -> torch.Tensor:
        return values[graph.targets].sum() + graph.num_edges + graph.edge_index()[0].sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    for graph in (box_graph(3, 4), box_graph(5, 2)):
        values = torch.arange(graph.num_nodes)
        assert compiled(graph, values) == total(graph, values)


def test_is_made_in_compiled_code() -> None:
    def number_of_edges(values: torch.Tensor) -> torch.Tensor:
        return values[box_graph(3, 4).targets].sum()

    values = torch.arange(12)
    compiled = torch.compile(number_of_edges, backend="aot_eager", fullgraph=True)
    assert compiled(values) == number_of_edges(values)


ONE = torch.tensor([0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RangeBox(1, 0, 0, 0), ValueError, "top: got 1, must be at most bottom = 0"),
        (lambda: RangeBox(0, 0, 3, 2), ValueError, "left: got 3, must be at most right = 2"),
        (lambda: RangeBox(0.5, 1, 0, 0), TypeError, "top: got float, must be an int"),
        (lambda: RangeBox(0, True, 0, 0), TypeError, "bottom: got bool, must be an int"),
        (
            lambda: EdgeGraph.from_range_box(3, 3, RangeBox(0, 1, 0, 1), device="mps"),
            ValueError,
            "device: got 'mps', must be a cpu or cuda device",
        ),
        (
            lambda: RangeBox.surrounding(4, 4, size=0),
            ValueError,
            "size: got .*, must be positive and finite",
        ),
        (
            lambda: RangeBox.above_below(4, 4, box_height=float("nan")),
            ValueError,
            "box_height: got nan, must be positive and finite",
        ),
        (lambda: box_graph(-1, 3), ValueError, "height: got -1, must be at least 0"),
        (lambda: box_graph(3, 2.5), TypeError, "width: got float, must be an int"),
        (
            lambda: box_graph(2**16, 2**15),
            ValueError,
            "height · width: got .*, must be at most 2147483647",
        ),
        (
            lambda: EdgeGraph.from_range_box(3, 3, (0, 1, 0, 1)),
            TypeError,
            "box: got tuple, must be a RangeBox",
        ),
        (
            lambda: EdgeGraph.from_edges(ONE, ONE, -1),
            ValueError,
            "num_nodes: got .*, must be in 0..",
        ),
        (
            lambda: EdgeGraph.from_edges(ONE, ONE, 1.5),
            TypeError,
            "num_nodes: got float, must be an int",
        ),
        (
            lambda: EdgeGraph.from_edges(ONE, torch.tensor([3]), 3),
            ValueError,
            "target_index: got 3, must be in 0..num_nodes-1 with num_nodes = 3",
        ),
        (
            lambda: EdgeGraph.from_edges(torch.tensor([-2]), ONE, 3),
            ValueError,
            "source_index: got -2, must be in 0..num_nodes-1 with num_nodes = 3",
        ),
        (lambda: EdgeGraph.from_edges(ONE, ONE, 0), ValueError, "source_index: got .*, must be in"),
        (
            lambda: EdgeGraph.from_edges(ONE, torch.tensor([0, 0]), 3),
            ValueError,
            "target_index: got 2, must have the 1 edges of source_index",
        ),
        (
            lambda: EdgeGraph.from_edges(ONE[None], ONE[None], 3),
            ValueError,
            r"source_index: got \[1, 1\], must have shape \[E\]",
        ),
        (
            lambda: EdgeGraph.from_edges(ONE.float(), ONE, 3),
            TypeError,
            "source_index: got dtype torch.float32, must be an integer dtype",
        ),
        (
            lambda: EdgeGraph.from_edges([0], ONE, 3),
            TypeError,
            "source_index: got list, must be a torch.Tensor",
        ),
        (lambda: EdgeGraph.batch([]), ValueError, "graphs: got none, must hold at least one graph"),
        (
            lambda: EdgeGraph.batch([box_graph(2, 2), box_graph(2, 2).to("meta")]),
            ValueError,
            r"graphs\[1\]: got device meta, must be cpu as graphs\[0\]",
        ),
        (lambda: EdgeGraph.batch(3), TypeError, "graphs: got int, must be a sequence of graphs"),
        (
            lambda: EdgeGraph.batch([box_graph(2, 2), 3]),
            TypeError,
            r"graphs\[1\]: got int, must be an EdgeGraph",
        ),
        (
            lambda: EdgeGraph.batch([empty_graph(2**30), empty_graph(2**30)]),
            ValueError,
            "graphs: got 2147483648, must have at most 2147483647 nodes together",
        ),
        (
            lambda: EdgeGraph.from_edges(ONE[:0], ONE[:0].to("meta"), 3),
            ValueError,
            "target_index: got device meta, must be cpu as source_index",
        ),
        (lambda: box_graph(2, 2).to("disk"), ValueError, "device: got 'disk', must be a cpu or"),
        (lambda: box_graph(2, 2).to(None), TypeError, "device: got None, must be a cpu or cuda"),
        (
            lambda: RangeBox.surrounding(4, 5, size=-1),
            ValueError,
            "size: got -1, must be positive and finite",
        ),
        (
            lambda: RangeBox.above_below(4, 5, box_width="a"),
            TypeError,
            "box_width: got str, must be a number",
        ),
    ],
)
def test_errors_name_the_argument(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_largest_and_smallest_boxes_and_grids() -> None:
    assert RangeBox(1, 1, 0, 0).num_edges(1, 2**31 - 1) == 0
    assert RangeBox(0, 0, 1, 1).num_edges(1, 2**31 - 1) == 2**31 - 2
    with pytest.raises(ValueError, match="height · width: got 2 · 1073741824, must be at most"):
        RangeBox(0, 0, 1, 1).num_edges(2, 2**30)
    half = EdgeGraph.batch([empty_graph(2**30), empty_graph(2**30 - 1)])
    assert half.num_nodes == 2**31 - 1
    assert RangeBox.left_right(20, 30) == RangeBox(-3, 3, 1, 8)


def test_graphs_are_told_apart_by_what_they_are() -> None:
    graph = box_graph(2, 3)
    assert len({graph, box_graph(2, 3)}) == 2
    assert EdgeGraph.batch([graph]) is graph
    assert graph.num_self_loops == 0
    assert graph.edge_index().dtype == torch.int64
    with pytest.raises(AttributeError):
        graph.num_self_loops = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        RangeBox(0, 1, 0, 1).top = 1  # type: ignore[misc]


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for call in (
        lambda: EdgeGraph.from_range_box(3, 3, RangeBox(0, 1, 0, 1), device="cuda"),
        lambda: box_graph(3, 3).to("cuda:0"),
    ):
        with pytest.raises(ValueError, match="device: got .*, must be 'cpu' here"):
            call()
