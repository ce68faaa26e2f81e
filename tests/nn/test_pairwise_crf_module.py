"""The layer over the logits of a grid as a module: its state, its copies and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pairwise_layers import inputs, labels_of, trained

import deepcrf_ext as dc
from deepcrf_ext.nn import PairwiseCRF


def test_state_is_keyed_by_the_name_of_the_relation() -> None:
    relations = {"near": dc.RangeBox(-1, 1, -1, 1), "far": dc.RangeBox(-3, 3, -3, 3)}
    layer = trained(relations)
    other = PairwiseCRF(5, 3, dict(reversed(relations.items())), hidden=6).double()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(*inputs()), layer(*inputs()))
    assert all("near" in key or "far" in key for key in layer.state_dict())
    assert {"relation_weights.near", "potentials.far.source.weight"} <= layer.state_dict().keys()


def test_copies_of_every_kind_compute_the_same() -> None:
    layer = trained()
    logits, features = inputs()
    wanted = layer(logits, features)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = PairwiseCRF(5, 3, hidden=6).double()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for same in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same(logits, features), wanted)


def test_reset_parameters_starts_anew() -> None:
    layer = trained()
    layer.reset_parameters()
    assert {weight.item() for weight in layer.relation_weights.values()} == {0.01}
    logits, features = inputs()
    torch.testing.assert_close(layer(logits, features), logits.log_softmax(1), rtol=0, atol=0.01)


def test_each_module_starts_its_own_parameters_anew() -> None:
    """As what fills a model made without values asks for: each module by itself."""
    with torch.device("meta"):
        layer = PairwiseCRF(5, 3)
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    for module in layer.modules():
        if [*module.parameters(recurse=False)]:
            module.reset_parameters()
    assert [w.item() for w in layer.relation_weights.values()] == pytest.approx([0.01, 0.01])
    logits, features = inputs(dtype=torch.float32)
    torch.testing.assert_close(layer(logits, features), logits.log_softmax(1), rtol=0, atol=0.01)


def test_repr_names_the_settings() -> None:
    text = repr(PairwiseCRF(5, 3))
    assert "relations=('surrounding', 'above_below'), iterations=3, ignore_index=255" in text


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"logits": torch.zeros(2, 4, 5, 6)}, ValueError, r"logits: got .*4, 5, 6.*K = 3"),
        ({"logits": torch.zeros(3, 5, 6)}, ValueError, "logits: got shape"),
        ({"logits": torch.zeros(2, 3, 0, 6)}, ValueError, "logits: got shape"),
        ({"logits": torch.zeros(2, 3, 5, 6).long()}, TypeError, "logits: got dtype torch.int64"),
        ({"logits": None}, TypeError, "logits: got NoneType"),
        ({"features": torch.zeros(2, 4, 5, 6)}, ValueError, "features: got .*C = 5"),
        ({"features": torch.zeros(2, 5, 10, 12)}, ValueError, "features: got .*h = 5, w = 6"),
        ({"features": torch.zeros(1, 5, 5, 6)}, ValueError, "features: got .*B = 2"),
        ({"features": torch.zeros(2, 5, 5, 6).half()}, TypeError, "features: got dtype"),
        ({"labels": torch.zeros(2, 1, 5, 6).long()}, ValueError, "labels: got shape"),
        ({"labels": torch.zeros(3, 5, 6).long()}, ValueError, "labels: got shape.*B = 2"),
        ({"labels": torch.zeros(2, 5, 6)}, TypeError, "labels: got dtype torch.float32"),
        ({"labels": torch.full((2, 5, 6), 7)}, ValueError, "labels: got 7"),
        ({"objective": "likelihood"}, ValueError, "objective: got 'likelihood', must be one of"),
        ({"objective": np.array(["piecewise", "x"])}, ValueError, "objective: got .*, must be one"),
        ({"class_weights": [1.0, 2.0]}, ValueError, "class_weights: got shape"),
        ({"class_weights": {0: 1.0}}, TypeError, "class_weights: got {0: 1.0}, must be 3 numbers"),
        ({"class_weights": "abc"}, TypeError, "class_weights: got 'abc', must be 3 numbers"),
        ({"class_weights": [1.0, -2.0, 1.0]}, ValueError, "class_weights: got -2.0, must be"),
        ({"class_weights": torch.tensor([1, torch.nan, 1])}, ValueError, "class_weights: got nan"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    changed: dict[str, Any], error: type[Exception], named: str
) -> None:
    layer = PairwiseCRF(5, 3)
    logits, features = inputs(dtype=torch.float32)
    arguments = {"logits": logits, "features": features, "labels": labels_of(logits), **changed}
    with pytest.raises(error, match=named):
        layer.loss(**arguments)
    if changed.keys() & {"logits", "features"}:
        with pytest.raises(error, match=named):
            layer(arguments["logits"], arguments["features"])


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"iterations": -1}, ValueError, "iterations: got -1"),
        ({"iterations": 2.0}, TypeError, "iterations"),
        ({"ignore_index": None}, TypeError, "ignore_index: got NoneType"),
        ({"hidden": 0}, ValueError, "hidden: got 0"),
        ({"relations": ["beside"]}, ValueError, "relations: got 'beside'"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        PairwiseCRF(5, 3, **settings)


def test_a_grid_too_large_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcrf_ext.nn.grid_graphs.available_memory", lambda _: 1 << 34)
    layer = PairwiseCRF(1, 2, hidden=1)
    with pytest.raises(dc.InputError, match="1,065,279,600 edges"):
        layer(torch.zeros(1, 2, 300, 300), torch.zeros(1, 1, 300, 300))
