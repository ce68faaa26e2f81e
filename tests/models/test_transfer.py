"""Starting from a trained model: the same classes, others, and other networks."""

from __future__ import annotations

import pytest
import torch

from deepcrf_ext.config import ModelConfig
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.transfer import transfer_weights


def make_model(num_classes: int, seed: int, **settings: object) -> DeepCRF:
    torch.manual_seed(seed)
    narrow = {"widths": (4,), "convs": (1,), "pooled_blocks": 1, "head_widths": (5,), "hidden": 3}
    return DeepCRF(ModelConfig(**{**narrow, "pairwise_hidden": 6, **settings}), num_classes)


def test_the_same_classes_are_taken_whole() -> None:
    old, new = make_model(3, 0), make_model(3, 1)
    transfer = transfer_weights(new, "abc", old.state_dict(), "abc")
    assert set(transfer.whole) == old.state_dict().keys()
    assert not transfer.in_part + transfer.new + transfer.left
    for name, value in old.state_dict().items():
        assert new.state_dict()[name].equal(value)


@pytest.mark.parametrize("classes", [("c", "x", "a", "y"), ("b", "a"), ("c", "a", "b")])
def test_other_classes_are_taken_by_name(classes: tuple[str, ...]) -> None:
    """Also when there are as many, and the shapes would fit."""
    old, new = make_model(3, 0), make_model(len(classes), 1)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    theirs = old.state_dict()
    transfer = transfer_weights(new, classes, theirs, ("a", "b", "c"))
    assert len(transfer.in_part) == 2 * 3  # weight and bias of the unary and two relations
    assert transfer.classes == tuple(name for name in classes if name in "abc")
    after = new.state_dict()
    for i, name in enumerate(classes):
        row = after["potentials.unary.output.weight"][i]
        known = name in "abc"
        source = theirs if known else before
        index = "abc".index(name) if known else i
        assert row.equal(source["potentials.unary.output.weight"][index])
        for j, other in enumerate(classes):
            both = known and other in "abc"
            place = (index, "abc".index(other)) if both else (i, j)
            for key in ("weight", "bias"):
                key = f"potentials.above_below.{key}"
                assert after[key][i, j].equal((theirs if both else before)[key][place])
    assert after["potentials.unary.hidden.weight"].equal(theirs["potentials.unary.hidden.weight"])
    assert transfer.started(["potentials.surrounding.source.weight"])


def test_no_class_in_common_leaves_the_last_layers_alone() -> None:
    old, new = make_model(2, 0), make_model(2, 1)
    before = new.state_dict()["potentials.unary.output.bias"].clone()
    transfer = transfer_weights(new, "xy", old.state_dict(), "ab")
    assert new.state_dict()["potentials.unary.output.bias"].equal(before)
    assert not transfer.in_part
    total = len(new.state_dict())
    assert f"{total - 6} of {total} tensors taken; 6 start anew" in str(transfer)


def test_other_networks_take_what_fits() -> None:
    old = make_model(2, 0, potentials=("unary",), hidden=7, pairwise_hidden=14)
    new = make_model(2, 1, potentials=("unary", "surrounding"))
    transfer = transfer_weights(new, "ab", old.state_dict(), "ab")
    assert "potentials.unary.hidden.weight" in transfer.new
    assert "potentials.unary.output.bias" in transfer.whole
    assert not transfer.started(["potentials.surrounding.source.weight"])
    assert not transfer.left
    back = transfer_weights(old, "ab", new.state_dict(), "ab")
    assert any(name.startswith("potentials.surrounding") for name in back.left)
    assert "have no place here (potentials.surrounding." in str(back)
