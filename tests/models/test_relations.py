"""Relations of any name and number: boxes to the side, dilated boxes, and their rows."""

from __future__ import annotations

import pytest
import torch

from deepcrf_ext import EdgeGraph, RangeBox
from deepcrf_ext.config import ModelConfig, RelationConfig, from_dict, paper_relations, to_dict
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import VARIANTS, DeepCRF, Variant
from deepcrf_ext.nn.grid_graphs import relation_graph
from deepcrf_ext.ops._flat_tensors import graph_tensors
from deepcrf_ext.train import parse_new_run

RELATIONS = {
    **paper_relations(),
    "left_right": RelationConfig("left_right", width=0.4, height=0.3),
    "near": RelationConfig("surrounding", width=0.1, height=0.1),
    "far": RelationConfig("surrounding", width=0.8, height=0.8, step=3),
}


@pytest.mark.parametrize("step", [1, 2, 3, 50])
@pytest.mark.parametrize("box", [(-3, 3, -3, 3), (1, 4, -2, 2), (-2, 0, 1, 5), (0, 0, 0, 0)])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5)])
def test_dilated_box_holds_every_offset_that_is_a_multiple(
    size: tuple[int, int], box: tuple[int, int, int, int], step: int
) -> None:
    height, width = size
    top, bottom, left, right = box
    expected = [
        (p_row * width + p_column, q_row * width + q_column)
        for p_row in range(height)
        for p_column in range(width)
        for q_row in range(height)
        for q_column in range(width)
        if top <= q_row - p_row <= bottom
        and left <= q_column - p_column <= right
        and (q_row, q_column) != (p_row, p_column)
        and (q_row - p_row) % step == 0
        and (q_column - p_column) % step == 0
    ]
    relation = RangeBox(*box, step=step)
    assert relation.num_edges(height, width) == len(expected)
    graph = EdgeGraph.from_range_box(height, width, relation)
    assert list(zip(*graph.edge_index().tolist(), strict=True)) == expected
    sorted_edges = EdgeGraph.from_edges(*graph.edge_index(), height * width)
    for found, wanted in zip(graph_tensors(graph), graph_tensors(sorted_edges), strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    assert graph.num_nodes == height * width
    assert graph.edge_order is None


def test_left_node_comes_first_in_a_left_right_edge() -> None:
    graph = EdgeGraph.from_range_box(10, 12, RangeBox.left_right(10, 12))
    first, second = graph.edge_index()
    assert (first % 12 < second % 12).all()
    turned = EdgeGraph.from_range_box(12, 10, RangeBox.above_below(12, 10))
    upper, lower = turned.edge_index()
    transposed = torch.stack([(i % 10) * 12 + i // 10 for i in (upper, lower)]).T.tolist()
    assert sorted(transposed) == graph.edge_index().T.tolist()


def test_relations_become_boxes_of_the_grid() -> None:
    assert RELATIONS["left_right"].box(20, 30) == RangeBox(-3, 3, 1, 8)
    assert RELATIONS["far"].box(20, 30) == RangeBox(-8, 8, -8, 8, step=3)
    offsets = RelationConfig("offsets", offsets=(0, 4, 0, 4), step=2)
    assert offsets.box(20, 30) == RangeBox(0, 4, 0, 4, 2)
    dense = relation_graph(RelationConfig("surrounding", 0.8, 0.8), 2, 20, 30, torch.device("cpu"))
    thin = relation_graph(RELATIONS["far"], 2, 20, 30, torch.device("cpu"))
    assert thin.num_nodes == dense.num_nodes
    assert dense.num_edges / 15 < thin.num_edges < dense.num_edges / 8


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kind": "surrounding", "step": 0}, "step: got 0, must be at least 1"),
        ({"kind": "offsets"}, "offsets: got None beside the kind 'offsets', must be given"),
        (
            {"kind": "surrounding", "offsets": (0, 1, 0, 1)},
            r"offsets: got \(0, 1, 0, 1\) beside the kind 'surrounding', must",
        ),
        (
            {"kind": "offsets", "offsets": (2, 1, 0, 0)},
            r"offsets: got \(2, 1, 0, 0\), must be top <= bottom",
        ),
        ({"kind": "offsets", "offsets": (0, 0, 1, 0)}, "offsets: got .*, left <= right"),
        ({"kind": "surrounding", "width": 0.3}, "width: got 0.3 .*, must be its height, 0.4"),
        ({"kind": "left_right", "width": -1.0}, "width: got -1.0, must be positive and finite"),
        ({"kind": "left_right", "height": 0.0}, "height: got 0.0, must be positive and finite"),
        ({"kind": "above_below", "height": float("inf")}, "height: got inf, must be"),
        ({"kind": "above_below", "width": "wide"}, "width: got 'wide', must be positive"),
        ({"kind": "around"}, "kind: got 'around', must be one of surrounding, above_below"),
        ({"kind": "offsets", "offsets": (0, 1, 0)}, r"offsets: got \(0, 1, 0\), must be four"),
    ],
)
def test_bad_relations_are_named(settings: dict, named: str) -> None:
    with pytest.raises(InputError, match=rf"relation\.{named}"):
        RelationConfig(**settings)
    with pytest.raises(ValueError, match="step"):
        RangeBox(0, 1, 0, 1, step=0)


def test_relations_are_given_in_a_file(tmp_path) -> None:
    file = tmp_path / "relations.yaml"
    file.write_text(
        "model:\n  relations:\n"
        "    left_right: {kind: left_right, width: 0.4, height: 0.3}\n"
        "    far: {kind: surrounding, width: 0.8, height: 0.8, step: 3}\n"
    )
    config = parse_new_run(["--config", str(file)])
    assert config.model.relations == {name: RELATIONS[name] for name in ("left_right", "far")}
    assert from_dict(to_dict(config)) == config


def test_every_relation_has_a_row_and_all_of_them_one() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        widths=(4,),
        convs=(1,),
        pooled_blocks=1,
        head_widths=(5,),
        hidden=4,
        pairwise_hidden=8,
        relations=RELATIONS,
        potentials="all",
    )
    model = DeepCRF(config, 3).eval()
    rows = model.variants()
    assert list(rows)[: len(VARIANTS)] == [*VARIANTS]
    assert rows["pairwise-far"] == Variant(None, ("far",))
    assert rows["1unary+5pair"] == Variant("unary", tuple(RELATIONS))
    assert len(rows) == len(VARIANTS) + 4
    images, labels = torch.rand(1, 3, 20, 26) * 255, torch.zeros(1, 20, 26, dtype=torch.int64)
    losses = model.losses(images, labels)
    assert all(losses[name] > 0 for name in RELATIONS)
    with torch.no_grad():
        whole = model.predict(images, "1unary+5pair")
        single = model.predict(images, "pairwise-far")
    assert not torch.allclose(whole, single)


def test_box_without_a_neighbour_costs_nothing() -> None:
    """A step wider than the grid leaves no edge: no loss, and the unary's own marginals."""
    relation = RelationConfig("offsets", offsets=(-9, 9, -9, 9), step=9)
    config = ModelConfig(
        widths=(4,), convs=(1,), pooled_blocks=1, head_widths=(5,), hidden=4,
        relations={"lattice": relation}, potentials=("unary", "lattice"),
    )  # fmt: skip
    model = DeepCRF(config, 3).eval()
    images = torch.rand(1, 3, 8, 8) * 255
    loss = model.losses(images, torch.zeros(1, 8, 8, dtype=torch.int64))["lattice"]
    loss.backward()
    assert loss == 0
    with torch.no_grad():
        row = model.predict(images, "1unary+1pair")
        torch.testing.assert_close(row, model.predict(images, "unary-3scales"))
