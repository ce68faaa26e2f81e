"""The layer `DenseCRF` as a module among others: copies, states, settings, errors."""

from __future__ import annotations

import copy
import doctest
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from dense_problems import scene
from torch import Tensor

from deepcrf_ext import DenseCRFParams
from deepcrf_ext.nn import DenseCRF
from deepcrf_ext.nn import dense_crf as module

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = DenseCRFParams(2, 1.0, 4, 25, 2.0)
TWO_LABELS = DenseCRFParams(compatibility=torch.eye(2))
TWO_WEIGHTS = DenseCRFParams(gaussian_weight=torch.eye(2))
ALL = ("weights", "compatibility", "widths")


def problem() -> tuple[Tensor, Tensor]:
    unary, image = scene(7, 9, 3, batch=2)
    return -unary, image


@pytest.mark.parametrize("learn", [(), ALL])
def test_copies_and_state(learn: tuple[str, ...]) -> None:
    logits, image = problem()
    layer = DenseCRF(3, 2, PARAMS, learn, mean=100.0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.rand(
                parameter.shape, generator=torch.Generator().manual_seed(0)
            )
    wanted = layer(logits, image)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(logits, image), wanted)
    # What is learnt does not depend on where another layer of the same kind started.
    other = DenseCRF(3, 2, DenseCRFParams(1, 9.0, 9, 9, 9.0) if learn else PARAMS, learn, mean=90.0)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(logits, image), wanted)


def test_reset_parameters() -> None:
    logits, image = problem()
    layer = DenseCRF(3, 2, PARAMS, ALL)
    wanted = layer(logits, image)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 1
    layer.reset_parameters()
    assert torch.equal(layer(logits, image), wanted)


@pytest.mark.filterwarnings("ignore:image. got negative values")
@pytest.mark.parametrize("learn", [(), ALL])
@pytest.mark.parametrize("compatibility", [None, torch.rand(3, 3)])
def test_a_layer_made_on_meta(learn: tuple[str, ...], compatibility: Tensor | None) -> None:
    """It is filled by `reset_parameters`, or by the state of another."""
    logits, image = problem()
    image = (image - 110.0) / 58  # a network's own
    params = DenseCRFParams(2, 1.0, (4, 5), 25, 2.0, compatibility)

    def make() -> DenseCRF:
        return DenseCRF(3, 2, params, learn, mean=(100.0, 110.0, 120.0), std=58.0)

    wanted = make()(logits, image)
    with torch.device("meta"):
        reset, loaded = make(), make()
    for layer in (reset, loaded):
        assert all(tensor.is_meta for tensor in layer.state_dict().values())
    reset.to_empty(device="cpu")
    for tensor in reset.state_dict().values():
        tensor.fill_(torch.nan)
    reset.reset_parameters()
    loaded.load_state_dict(make().state_dict(), assign=True)
    for layer in (reset, loaded):
        assert torch.equal(layer(logits, image), wanted)


def test_a_state_that_was_loaded_is_not_the_start() -> None:
    """A matrix that is not learnt is a part of the state, too."""
    logits, image = problem()
    first, other = (DenseCRFParams(compatibility=matrix) for matrix in torch.rand(2, 3, 3))
    layer = DenseCRF(3, 2, first, ())
    wanted = layer(logits, image)
    layer.load_state_dict(DenseCRF(3, 2, other, ()).state_dict())
    assert not torch.equal(layer(logits, image), wanted)
    layer.reset_parameters()
    assert torch.equal(layer(logits, image), wanted)


def test_repr() -> None:
    text = repr(DenseCRF(3, 2, PARAMS, ["widths"]))
    for part in ("num_classes=3", "iterations=2", "learn=('widths',)", "bilateral_srgb=25.0"):
        assert part in text


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "num_classes: got float", {"num_classes": 3.0}),
        (ValueError, "num_classes: got 0", {"num_classes": 0}),
        (ValueError, "iterations: got -1", {"iterations": -1}),
        (TypeError, "params: got dict", {"params": {}}),
        (ValueError, "params: got a compatibility of 2", {"params": TWO_LABELS}),
        (ValueError, "params: got a gaussian_weight of 2", {"params": TWO_WEIGHTS}),
        (TypeError, "learn: got str", {"learn": "weights"}),
        (TypeError, "learn: got int", {"learn": 5}),
        (ValueError, "learn: got 'weight', must be some of weights", {"learn": ("weight",)}),
        (TypeError, "mean: got 'a'", {"mean": "a"}),
        (TypeError, "mean: got bool", {"mean": [True]}),
        (TypeError, r"mean: got \[\], must be a number or one", {"mean": []}),
        (ValueError, "std: got 0", {"std": (0.0, 1.0, 1.0)}),
    ],
)  # fmt: skip
def test_bad_arguments(error: type[Exception], match: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        DenseCRF(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "logits: got shape", {"logits": torch.zeros(2, 4, 7, 9)}),
        (TypeError, "logits: got dtype", {"logits": torch.zeros(2, 3, 7, 9, dtype=torch.int64)}),
        (TypeError, "logits: got ndarray", {"logits": np.zeros((2, 3, 7, 9))}),
        (ValueError, "logits: got NaN, .inf", {"logits": torch.full((2, 3, 7, 9), torch.nan)}),
        (ValueError, "logits: got NaN, .inf", {"logits": torch.full((2, 3, 2, 3), torch.inf)}),
        (ValueError, "no finite one", {"logits": torch.full((2, 3, 7, 9), -torch.inf)}),
        (ValueError, "image: got shape", {"image": torch.zeros(1, 3, 7, 9)}),
        (ValueError, "image: got 1 spatial axes", {"image": torch.zeros(2, 3, 7)}),
        (TypeError, "image: got dtype", {"image": torch.zeros(2, 3, 7, 9, dtype=torch.int64)}),
        (ValueError, "mean: got 3 numbers", {"image": torch.zeros(2, 4, 7, 9)}),
        (ValueError, "meta, must be cpu as logits", {"image": torch.zeros(2, 3, 7, 9).to("meta")}),
    ],
)
def test_bad_inputs(error: type[Exception], match: str, change: dict[str, Any]) -> None:
    logits, image = problem()
    layer = DenseCRF(3, mean=(1.0, 2.0, 3.0))
    with pytest.raises(error, match=match):
        layer(**{"logits": logits, "image": image, **change})


def test_docstring() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
