"""What only the CUDA kernels have: the piecewise loss in chunks, launches that split the work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accuracy import assert_accurate
from problems import (
    FACTORED,
    OPERATORS,
    Problem,
    grid_problem,
    make_problem,
    random_graph,
    value_and_gradients,
)
from targets import Target

from deepcrf_ext import reference
from deepcrf_ext.ops import _pairwise_messages_blocks, _pairwise_nll_chunks

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# Chunks of the loss are 64 edges, its sums slices of 64 to 256 features; tiles of the messages, 16
# nodes and 16 edges, 64 or 128 features, 24 labels.
PROBLEMS = {
    "whole-tiles": lambda: make_problem([random_graph(16, 64, 1)], [FACTORED], 8, 64, ignored=0),
    "one-more": lambda: make_problem([random_graph(17, 65, 2)], [FACTORED], 9, 65),
    "one-less": lambda: make_problem([random_graph(15, 63, 3)], [FACTORED], 7, 63),
    "labels": lambda: make_problem([random_graph(18, 33, 4)], [FACTORED], 25, 20),
    "features": lambda: make_problem([random_graph(20, 30, 5)], [FACTORED], 3, 513),
    "grid": lambda: grid_problem(9, 7, FACTORED, 5, 24),
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of the piecewise loss as small as they can be."""
    monkeypatch.setattr(_pairwise_nll_chunks, "CHUNK_BYTES", 1)


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
@pytest.mark.usefixtures("small_chunks")
def test_the_loss_in_chunks(
    cuda_target: Target, operator: str, name: str, dtype: torch.dtype
) -> None:
    check(operator, cuda_target, PROBLEMS[name](), dtype)


@pytest.fixture(params=[1, _pairwise_messages_blocks.BLOCK_BYTES], ids=["small", "whole"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of messages a node at a time, and of all at once."""
    monkeypatch.setattr(_pairwise_messages_blocks, "BLOCK_BYTES", request.param)


@pytest.mark.parametrize("operator", ["pairwise_messages", "mean_field"])
@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_messages_at_the_borders_of_tiles(
    cuda_target: Target, operator: str, name: str, dtype: torch.dtype
) -> None:
    check(operator, cuda_target, PROBLEMS[name](), dtype)


@pytest.fixture
def high_precision() -> Iterator[None]:
    """Torch's own products of float32 may round their operands to TensorFloat32."""
    former = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(former)


@pytest.mark.parametrize("operator", ["pairwise_messages", "mean_field"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.usefixtures("high_precision")
def test_float32_messages_by_tensor_float32(cuda_target: Target, operator: str, name: str) -> None:
    """Each operand is rounded by 2⁻¹¹ at most, and sums are those of float32."""
    problem = PROBLEMS[name]()
    with torch.no_grad():
        result = OPERATORS[operator](
            cuda_target.functions, problem.to(cuda_target.device, torch.float32)
        )
        exact = OPERATORS[operator](reference, problem.to(CPU, torch.float64))
    error = float((result.cpu() - exact).abs().max() / exact.abs().max())
    assert 1e-7 < error < 1.5e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_field_over_more_potentials_than_a_launch_takes(
    cuda_target: Target, dtype: torch.dtype
) -> None:
    graphs = [random_graph(9, 14, seed) for seed in range(6)]
    check("mean_field", cuda_target, make_problem(graphs, [FACTORED] * 6, 4, 10), dtype)


@pytest.mark.parametrize("num_labels", [1, 8, 9, 24, 25, 49])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_label_tiles(
    cuda_target: Target, num_labels: int, dtype: torch.dtype
) -> None:
    problem = make_problem([random_graph(6, 20, 7)], [FACTORED], num_labels, 8)
    check("pairwise_messages", cuda_target, problem, dtype)
