"""What only the CUDA kernels have: two ways of the piecewise loss, launches that split the work."""

from __future__ import annotations

import importlib

import pytest
import torch
from accuracy import assert_accurate
from problems import (
    FACTORED,
    Problem,
    grid_problem,
    make_problem,
    random_graph,
    value_and_gradients,
)
from targets import Target

from deepcrf_ext import reference
from deepcrf_ext.ops import _backend, _pairwise_nll_chunks

pairwise_nll = importlib.import_module("deepcrf_ext.ops.pairwise_nll")

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float64]

# Tiles of the fused loss are 64, 32 or 16 edges and label pairs; those of the messages, 16 nodes
# and 16 edges, 64 or 128 features, 24 labels.
PROBLEMS = {
    "whole-tiles": lambda: make_problem([random_graph(16, 64, 1)], [FACTORED], 8, 64, ignored=0),
    "one-more": lambda: make_problem([random_graph(17, 65, 2)], [FACTORED], 9, 65),
    "one-less": lambda: make_problem([random_graph(15, 63, 3)], [FACTORED], 7, 63),
    "labels": lambda: make_problem([random_graph(18, 33, 4)], [FACTORED], 25, 20),
    "features": lambda: make_problem([random_graph(20, 30, 5)], [FACTORED], 3, 513),
    "grid": lambda: grid_problem(9, 7, FACTORED, 5, 24),
}


@pytest.fixture(params=["fused", "chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sends the piecewise loss one way; chunks are then as small as they can be."""
    most = 1 << 62 if request.param == "fused" else -1
    monkeypatch.setattr(pairwise_nll, "MOST_FUSED_ENERGIES", most)
    monkeypatch.setattr(_pairwise_nll_chunks, "CHUNK_BYTES", 1)
    return request.param


def check(operator: str, target: Target, problem: Problem, dtype: torch.dtype) -> None:
    rounded = problem.to(CPU, dtype)
    assert_accurate(
        value_and_gradients(operator, target.functions, rounded.to(target.device, dtype)),
        value_and_gradients(operator, reference, rounded),
        value_and_gradients(operator, reference, rounded.to(CPU, torch.float64)),
    )


@pytest.mark.parametrize("operator", ["pairwise_nll", "pairwise_nll_mean"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways_of_the_loss(
    cuda_target: Target, way: str, operator: str, name: str, dtype: torch.dtype
) -> None:
    check(operator, cuda_target, PROBLEMS[name](), dtype)


@pytest.mark.parametrize("operator", ["pairwise_nll", "pairwise_nll_mean"])
def test_both_ways_of_the_loss_under_autocast(cuda_target: Target, way: str, operator: str) -> None:
    """As training calls them; bfloat16 products would not even have the dtype of the losses."""
    problem = PROBLEMS["one-more"]().to(cuda_target.device, torch.float32)
    wanted = value_and_gradients(operator, cuda_target.functions, problem)
    with torch.autocast(cuda_target.device.type, torch.bfloat16):
        results = value_and_gradients(operator, cuda_target.functions, problem)
    for name, value in wanted.items():
        assert torch.equal(results[name], value), name


@pytest.mark.parametrize("operator", ["pairwise_messages", "mean_field"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_messages_at_the_borders_of_tiles(
    cuda_target: Target, operator: str, name: str, dtype: torch.dtype
) -> None:
    check(operator, cuda_target, PROBLEMS[name](), dtype)


@pytest.mark.parametrize("num_features", [512, 513])
def test_features_that_the_fused_loss_takes(cuda_target: Target, num_features: int) -> None:
    problem = make_problem([random_graph(3, 2, 1)], [FACTORED], 2, num_features)
    potential = problem.to(cuda_target.device, torch.bfloat16).potentials[0]
    tensors = (potential.source, potential.target, potential.weight, potential.bias)
    assert _backend.native().pairwise_nll_factored_fits(tensors) == (num_features == 512)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_field_over_more_potentials_than_a_launch_takes(
    cuda_target: Target, dtype: torch.dtype
) -> None:
    graphs = [random_graph(9, 14, seed) for seed in range(6)]
    check("mean_field", cuda_target, make_problem(graphs, [FACTORED] * 6, 4, 10), dtype)


@pytest.mark.parametrize("num_labels", [1, 8, 9, 24, 25, 49])
def test_every_number_of_label_tiles(cuda_target: Target, num_labels: int) -> None:
    problem = make_problem([random_graph(6, 20, 7)], [FACTORED], num_labels, 8)
    check("pairwise_messages", cuda_target, problem, torch.bfloat16)
