"""Operators and layers over fake tensors, which have shapes and no values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from problems import FACTORED, OPERATORS, TABLE, Problem, grid_problem, value_and_gradients
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import deepcrf_ext as dc
from deepcrf_ext import nn as crf
from deepcrf_ext.ops._device_cache import DeviceCache
from deepcrf_ext.ops._flat_tensors import graph_tensors


def fake_mode() -> FakeTensorMode:
    """A mode in which sizes may depend on values, as the number of points of a lattice does."""
    return FakeTensorMode(shape_env=ShapeEnv())


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", [FACTORED, TABLE])
def test_operators_over_graphs(operator: str, kind: str) -> None:
    real = grid_problem(3, 4, kind, 3, 5).to(torch.device("cpu"), torch.float32)
    wanted = value_and_gradients(operator, dc, real)
    with FakeTensorMode() as mode:
        graphs = [
            dc.EdgeGraph(*map(mode.from_tensor, graph_tensors(graph))) for graph in real.graphs
        ]
        tensors = {name: mode.from_tensor(tensor) for name, tensor in real.tensors.items()}
        labels = mode.from_tensor(real.labels)
        fake = Problem(tuple(graphs), real.kinds, tensors, labels, real.ignore_index)
        results = value_and_gradients(operator, dc, fake)
    for name, value in wanted.items():
        assert isinstance(results[name], FakeTensor)
        assert (results[name].shape, results[name].dtype) == (value.shape, value.dtype), name


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dense_crf": lambda logits, image: dc.dense_crf(logits, image, iterations=2),
    "dense_crf_loss": lambda logits, image: dc.dense_crf_loss(logits.softmax(1), image),
    "gated_crf_loss": lambda logits, image: dc.gated_crf_loss(logits.softmax(1), image),
    "DenseCRF": lambda logits, image: crf.DenseCRF(3, 2, learn=crf.dense_crf.LEARNABLE)(
        logits, image
    ),
    "PairwiseCRF": lambda logits, image: crf.PairwiseCRF(3, 3)(logits, image),
    "PairwiseCRF.loss": lambda logits, image: sum(
        crf.PairwiseCRF(3, 3).loss(logits, image, image[:, 0].long()).values(), logits.new_zeros(())
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_functions_of_images(name: str, wants_gradient: bool) -> None:
    """And real tensors, before and after, are none the wiser."""
    logits, image = torch.zeros(2, 3, 6, 7), torch.zeros(2, 3, 6, 7)

    def result(mode: FakeTensorMode | None) -> Tensor:
        inputs = [logits, image] if mode is None else list(map(mode.from_tensor, (logits, image)))
        value = FUNCTIONS[name](inputs[0].requires_grad_(wants_gradient), inputs[1])
        if wants_gradient:
            assert torch.autograd.grad(value.sum(), inputs[:1])[0].shape == logits.shape
        return value.detach()

    with fake_mode() as mode:
        results = [result(mode)]
    wanted = result(None)
    with fake_mode() as mode:
        results.append(result(mode))
    assert type(wanted) is Tensor
    assert type(result(None)) is Tensor
    for other in results:
        assert isinstance(other, FakeTensor)
        assert (other.shape, other.dtype) == (wanted.shape, wanted.dtype)


def test_no_fake_value_is_kept() -> None:
    cpu = torch.device("cpu")
    cache: DeviceCache[Tensor] = DeviceCache(1 << 20, lambda tensor: [tensor])
    with FakeTensorMode():
        assert isinstance(cache.get_or_build("key", cpu, lambda: torch.ones(3)), FakeTensor)
    kept = cache.get_or_build("key", cpu, lambda: torch.ones(3))
    assert torch.equal(kept, torch.ones(3))
    with FakeTensorMode():
        assert isinstance(cache.get_or_build("key", cpu, lambda: torch.ones(3)), FakeTensor)
    assert cache.get("key") is kept


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_default_device_is_not_that_of_the_work(device: str) -> None:
    """Functions make what they need where their arguments are."""
    logits, image = torch.zeros(2, 3, 6, 7), torch.zeros(2, 3, 6, 7)
    layers = {"DenseCRF": crf.DenseCRF(3, 2), "PairwiseCRF": crf.PairwiseCRF(3, 3)}
    with torch.device(device):
        for name, function in FUNCTIONS.items():
            result = layers.get(name, function)
            if "." not in name:
                assert result(logits, image).isfinite().all()
        params = dc.DenseCRFParams(bilateral_sxy=(3, 4))
        lattices = dc.DenseCRFLattices.build(image, params)
        assert dc.dense_crf(logits, image, params, 2, lattices).isfinite().all()
        held_out = [(logits, image, torch.zeros(2, 6, 7, dtype=torch.int64, device="cpu"))]
        calibration = layers["PairwiseCRF"].calibrate(held_out)
        assert calibration.after <= calibration.before
