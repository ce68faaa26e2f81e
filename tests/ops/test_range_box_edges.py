"""The range-box operator against a loop over all pairs of nodes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from registered import opcheck
from targets import Target
from threads import torch_threads

from deepcrf_ext import EdgeGraph, RangeBox
from deepcrf_ext.ops import _backend
from deepcrf_ext.ops.range_box_edges import num_range_box_edges, range_box_edges
from deepcrf_ext.reference.range_box_edges import range_box_edges as reference_edges

NAMES = (
    "row_offsets",
    "targets",
    "reverse_row_offsets",
    "reverse_sources",
    "reverse_edges",
    "sources",
)

sides = st.integers(0, 7)
# Boxes lie anywhere, also far outside of the grid.
ranges = st.tuples(st.integers(-9, 9), st.integers(0, 12)).map(lambda r: (r[0], r[0] + r[1]))


def brute_force(height: int, width: int, box: RangeBox) -> dict[str, list[int]]:
    """The fields of the graph, edge by edge."""
    nodes = [(row, column) for row in range(height) for column in range(width)]
    edges = [
        (p, q)
        for p, (row, column) in enumerate(nodes)
        for q, (other_row, other_column) in enumerate(nodes)
        if p != q
        and box.top <= other_row - row <= box.bottom
        and box.left <= other_column - column <= box.right
    ]
    in_edges = sorted((q, p, position) for position, (p, q) in enumerate(edges))
    return {
        "row_offsets": [sum(p < node for p, _ in edges) for node in range(len(nodes) + 1)],
        "targets": [q for _, q in edges],
        "reverse_row_offsets": [sum(q < node for _, q in edges) for node in range(len(nodes) + 1)],
        "reverse_sources": [p for _, p, _ in in_edges],
        "reverse_edges": [position for _, _, position in in_edges],
        "sources": [p for p, _ in edges],
    }


@given(sides, sides, ranges, ranges)
def test_equals_a_loop_over_pairs(
    operator_target: Target,
    height: int,
    width: int,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> None:
    box = RangeBox(*rows, *columns)
    graph = EdgeGraph.from_range_box(height, width, box, device=operator_target.device)
    for name, expected in brute_force(height, width, box).items():
        assert getattr(graph, name).tolist() == expected, name
    assert graph.num_nodes == height * width
    assert graph.edge_order is None


@given(sides, sides, ranges, ranges)
def test_reference_equals_a_loop_over_pairs(
    height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    fields = reference_edges(height, width, *rows, *columns, torch.device("cpu"))
    expected = brute_force(height, width, RangeBox(*rows, *columns))
    assert [field.tolist() for field in fields] == [expected[name] for name in NAMES]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_large_grid_equals_reference(operator_target: Target, threads: int) -> None:
    arguments = (23, 31, -9, 4, -3, 17)
    with torch_threads(threads):
        fields = range_box_edges(*arguments, operator_target.device)
    for name, field, expected in zip(
        NAMES, fields, reference_edges(*arguments, torch.device("cpu")), strict=True
    ):
        torch.testing.assert_close(field.cpu(), expected, rtol=0, atol=0, msg=name)


def test_edge_count_beyond_32_bits() -> None:
    side = 2**15
    # (2 · half + 1)² pairs a node less what the border clips, by hand for half = 500.
    on_axis = side * 1001 - 500 * 501
    assert num_range_box_edges(side, side, -500, 500, -500, 500) == on_axis**2 - side**2
    assert on_axis**2 - side**2 > 2**31


def test_edge_count_beyond_32_bits_in_the_extension() -> None:
    width, right = 2**20, 2**12
    arguments = (1, width, 0, 0, 0, right)
    num_edges = num_range_box_edges(*arguments)
    assert num_edges > 2**31
    offsets, too_few = torch.empty(width + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
    with pytest.raises(ValueError, match=rf"targets: got shape \[0\], must be \[{num_edges}\]"):
        _backend.native().range_box_edges(
            *(*arguments, offsets, too_few, offsets, too_few, too_few.long(), too_few),
            *_backend.launch_args(offsets),
        )


@pytest.mark.parametrize("box", [(-1, 2, -3, 1), (1, 2, -1, 1), (7, 7, 0, 0), (0, 0, 0, 0)])
def test_opcheck(operator_target: Target, box: tuple[int, int, int, int]) -> None:
    opcheck(range_box_edges, (4, 5, *box, operator_target.device))


def test_output_of_another_size_is_refused() -> None:
    fields = range_box_edges(3, 4, -1, 1, -1, 1, torch.device("cpu"))
    threads_and_stream = _backend.launch_args(fields[0])
    with pytest.raises(ValueError, match=r"targets: got shape \[57\], must be \[58\]"):
        _backend.native().range_box_edges(
            3, 4, -1, 1, -1, 1, fields[0], fields[1][:-1], *fields[2:], *threads_and_stream
        )
    with pytest.raises(ValueError, match="targets: got torch.int64, must be int32"):
        _backend.native().range_box_edges(
            3, 4, -1, 1, -1, 1, fields[0], fields[1].long(), *fields[2:], *threads_and_stream
        )
    with pytest.raises(ValueError, match="targets: got other strides, must be contiguous"):
        _backend.native().range_box_edges(
            *(3, 4, -1, 1, -1, 1, fields[0], fields[1].repeat(2)[::2], *fields[2:]),
            *threads_and_stream,
        )
    with pytest.raises(ValueError, match="targets: got .*, must be a torch.Tensor"):
        _backend.native().range_box_edges(
            3, 4, -1, 1, -1, 1, fields[0], None, *fields[2:], *threads_and_stream
        )


def test_cuda_device_that_is_not_there_is_an_error() -> None:
    class OnMissingDevice:
        """A CUDA tensor to the extension, of which only the device will be looked at."""

        def __init__(self, tensor: torch.Tensor) -> None:
            self.is_cuda, self.get_device = True, lambda: 99
            self.shape, self.dtype = tensor.shape, tensor.dtype
            self.data_ptr, self.is_contiguous = tensor.data_ptr, tensor.is_contiguous

    fields = range_box_edges(3, 4, -1, 1, -1, 1, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="built without CUDA|CUDA error in cuda"):
        _backend.native().range_box_edges(
            *(3, 4, -1, 1, -1, 1), *map(OnMissingDevice, fields), num_threads=1, stream=0
        )
