"""Graphs, potentials and settings in files, which `torch.load` opens with ``weights_only=True``."""

from __future__ import annotations

import copy
import copyreg
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import deepcrf_ext as dc
from deepcrf_ext.nn import PairwisePotential, RelationConfig
from deepcrf_ext.ops import graph as graph_module

EDGES = torch.tensor([[3, 0, 1, 1, 1], [0, 1, 2, 1, 2]])  # a loop, an edge twice, an isolated node
GRAPHS = {
    "edges": dc.EdgeGraph.from_edges(*EDGES, 5),
    "grid": dc.EdgeGraph.from_range_box(3, 4, dc.RangeBox(-1, 2, -1, 1)),
    "nothing": dc.EdgeGraph.from_edges(*EDGES[:, :0], 0),
    "nodes": dc.EdgeGraph.from_edges(*EDGES[:, :0], 2),
}
GRAPHS["batch"] = dc.EdgeGraph.batch(list(GRAPHS.values()))
OBJECTS = {
    "table": dc.TablePotential(GRAPHS["edges"], torch.randn(5, 2, 2)),
    "factored": PairwisePotential(4, 3, hidden=6)(torch.randn(12, 4), GRAPHS["grid"]),
    "box": dc.RangeBox(-1, 2, -4, 4, step=2),
    "relation": RelationConfig("offsets", offsets=(0, 1, 0, 2)),
    "params": dc.DenseCRFParams(bilateral_sxy=(4, 5), compatibility=torch.rand(2, 2)),
    **GRAPHS,
}


def loaded(value: Any, **options: Any) -> Any:
    """What comes back from a file."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True, **options)


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def assert_same(found: Any, value: Any) -> None:
    assert type(found) is type(value)
    for name, wanted in vars(value).items():
        own = getattr(found, name)
        if isinstance(wanted, Tensor):
            assert (own.dtype, own.requires_grad) == (wanted.dtype, wanted.requires_grad)
            assert torch.equal(own, wanted)
        elif isinstance(wanted, dc.EdgeGraph):
            assert_same(own, wanted)
        else:
            assert own == wanted


@pytest.mark.parametrize("copied", [loaded, through_pickle])
@pytest.mark.parametrize("name", OBJECTS)
def test_what_is_loaded_is_what_was_saved(name: str, copied: Callable[[Any], Any]) -> None:
    (found,) = copied([OBJECTS[name]])
    assert_same(found, OBJECTS[name])


def test_a_graph_stays_where_it_is_in_a_deep_copy() -> None:
    on_meta = GRAPHS["edges"].to("meta")
    assert copy.deepcopy([on_meta]) == [on_meta]


def arguments() -> list[Any]:
    """What a file holds of the graph of `EDGES`."""
    return list(GRAPHS["edges"].__reduce__()[1])


class Saved:
    """What a file says is to be called, and with what."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def changed(index: int, value: Any) -> Saved:
    """A graph of which one argument is another."""
    args = arguments()
    args[index] = value
    return Saved(graph_module._loaded_graph, *args)


def test_the_arguments_of_a_graph_make_a_graph() -> None:
    assert_same(loaded(changed(2, 5)), GRAPHS["edges"])


SOURCES, TARGETS, NODES, REVERSE, ORDER = range(5)
LONG = torch.tensor([2**31, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("saved", "error", "match"),
    [
        (changed(SOURCES, None), TypeError, "source_index: got NoneType"),
        (changed(SOURCES, EDGES[0]), ValueError, "edges out of order"),
        (changed(SOURCES, torch.tensor([0, 1, 1, 1, 5])), ValueError, "source_index: got 5"),
        (changed(TARGETS, torch.tensor([1, 1, 2, 2, -1])), ValueError, "target_index: got -1"),
        (changed(TARGETS, torch.tensor([1, 2, 1, 2, 0])), ValueError, "edges out of order"),
        (changed(TARGETS, LONG), ValueError, "target_index: got 2147483648"),
        (changed(TARGETS, EDGES[0][:4]), ValueError, "target_index: got 4, must have the 5"),
        (changed(NODES, 3), ValueError, "source_index: got 3"),
        (changed(NODES, -1), ValueError, "num_nodes: got -1"),
        (changed(NODES, 2**40), ValueError, "num_nodes: got 1099511627776"),
        (changed(NODES, 1.5), TypeError, "num_nodes: got float"),
        (changed(REVERSE, None), TypeError, "reverse_edges: got NoneType"),
        (changed(REVERSE, torch.arange(5)), ValueError, "edges out of order"),
        (changed(REVERSE, torch.zeros(5).long()), ValueError, "edges out of order"),
        (changed(REVERSE, torch.tensor([4, 0, 1, 3, 2])), ValueError, "edges out of order"),
        (changed(REVERSE, torch.arange(1, 6)), ValueError, "reverse_edges: got 5, must be in"),
        (changed(REVERSE, torch.arange(4)), ValueError, "reverse_edges: got 4, must have 5"),
        (changed(REVERSE, torch.zeros(5)), TypeError, "reverse_edges: got dtype torch.float32"),
        (changed(ORDER, torch.arange(-1, 4)), ValueError, "edge_order: got -1, must be in"),
        (changed(ORDER, torch.arange(5)[None]), ValueError, r"edge_order: got \[1, 5\]"),
        (Saved(graph_module._range_box, 0, 1, 0, 1, 0), ValueError, "step: got 0"),
        (Saved(graph_module._range_box, 2, 1, 0, 1, 1), ValueError, "top: got 2"),
    ],
)
def test_what_no_graph_can_be_is_refused(saved: Saved, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        loaded(saved)


@pytest.mark.parametrize("name", OBJECTS)
def test_a_file_can_set_no_attributes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would not be checked."""
    value = OBJECTS[name]
    own = type(value)
    by_attributes = (copyreg.__newobj__, (own,), dict(vars(value)))  # type: ignore[attr-defined]
    monkeypatch.setattr(own, "__reduce__", lambda _: by_attributes)
    with pytest.raises(pickle.UnpicklingError, match=f"Unsupported global.*{own.__name__}"):
        loaded(value)


def test_a_truncated_file_is_refused() -> None:
    file = io.BytesIO()
    torch.save(GRAPHS["grid"], file)
    whole = file.getvalue()
    for length in range(0, len(whole), 97):
        with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
            torch.load(io.BytesIO(whole[:length]), weights_only=True)
