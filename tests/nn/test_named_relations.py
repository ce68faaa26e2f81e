"""Relations of a layer by name: what is taken, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from deepcrf_ext import RangeBox
from deepcrf_ext.nn import RelationConfig
from deepcrf_ext.nn.relations import NAMED_RELATIONS, named_relations, paper_relations


def test_names_stand_for_relations() -> None:
    taken = named_relations(["left_right", "surrounding"])
    assert taken == {name: NAMED_RELATIONS[name] for name in ("left_right", "surrounding")}
    assert list(taken) == ["left_right", "surrounding"]
    assert named_relations(("surrounding", "above_below")) == paper_relations()
    assert named_relations(()) == {}


@pytest.mark.parametrize("name", NAMED_RELATIONS)
def test_a_named_relation_is_the_box_of_that_name(name: str) -> None:
    assert NAMED_RELATIONS[name].box(20, 30) == getattr(RangeBox, name)(20, 30)


def test_a_dictionary_holds_boxes_of_nodes_or_of_fractions() -> None:
    near, far = RelationConfig("surrounding", 0.1, 0.1), RangeBox(-9, 0, 2, 6, step=2)
    taken = named_relations({"near": near, "far": far})
    assert taken["near"] is near
    assert taken["far"].box(20, 30) == far


@pytest.mark.parametrize(
    ("relations", "error", "named"),
    [
        ("surrounding", TypeError, "relations: got str"),
        (["around"], ValueError, "relations: got 'around', must be names out of surrounding"),
        (["surrounding"] * 2, ValueError, "must be different"),
        ({1: RangeBox(0, 1, 0, 1)}, TypeError, "the name 1"),
        ({"a.b": RangeBox(0, 1, 0, 1)}, ValueError, "the name 'a.b'"),
        ({"": RangeBox(0, 1, 0, 1)}, ValueError, "the name ''"),
        ({"unary": RangeBox(0, 1, 0, 1)}, ValueError, "the name 'unary'"),
        ({"keys": RangeBox(0, 1, 0, 1)}, ValueError, "the name 'keys'"),
        ({"get": RangeBox(0, 1, 0, 1)}, ValueError, "the name 'get'"),
        ({"near": (0, 1, 0, 1)}, TypeError, r"relations\['near'\]: got tuple"),
    ],
)
def test_others_are_refused(relations: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        named_relations(relations)
