"""Hypothesis strategies for ragged graphs and problems on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from problems import FACTORED, TABLE, Problem, make_problem

from deepcrf_ext import EdgeGraph


@st.composite
def graphs(draw: st.DrawFn, num_nodes: int, max_edges: int) -> EdgeGraph:
    """Any graph on `num_nodes` nodes: no edge, isolated nodes, duplicates and self loops too."""
    node = st.integers(0, max(0, num_nodes - 1))
    edge_list = draw(st.lists(st.tuples(node, node), max_size=max_edges if num_nodes else 0))
    ends = torch.tensor(edge_list, dtype=torch.int64).reshape(-1, 2)
    return EdgeGraph.from_edges(ends[:, 0], ends[:, 1], num_nodes)


@st.composite
def problems(
    draw: st.DrawFn,
    label_counts: Sequence[int] = (1, 2, 3),
    dims: st.SearchStrategy[int] | None = None,
    max_nodes: int = 5,
    max_edges: int = 12,
) -> Problem:
    """Float64 problems of one or two potentials; none, some or all of the nodes are ignored."""
    num_nodes = draw(st.integers(0, max_nodes))
    kinds = draw(st.lists(st.sampled_from([FACTORED, TABLE]), min_size=1, max_size=2))
    return make_problem(
        [draw(graphs(num_nodes, max_edges)) for _ in kinds],
        kinds,
        draw(st.sampled_from(label_counts)),
        draw(st.integers(1, 4) if dims is None else dims),
        ignore_index=draw(st.sampled_from([255, -1, 0])),
        ignored=draw(st.sampled_from([0.0, 0.3, 1.0])),
        seed=draw(st.integers(0, 2**16)),
    )


reductions = st.sampled_from(["mean", "sum", "none"])
