"""What only the CUDA kernels have: the piecewise loss in chunks, launches that split the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from accuracy import assert_accurate
from problems import (
    FACTORED,
    OPERATORS,
    TABLE,
    Problem,
    grid_problem,
    make_problem,
    random_graph,
    value_and_gradients,
)
from targets import Target

from deepcrf_ext import EdgeGraph, reference
from deepcrf_ext.ops import _pairwise_messages_blocks, _pairwise_nll_chunks

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# Chunks of the loss are 64 edges, its sums slices of 64 to 256 features; tiles of the messages, 16
# nodes and 16 edges of the 32 that are ahead, 32 to 128 features, 24 labels.
PROBLEMS = {
    "whole-tiles": lambda: make_problem([random_graph(16, 64, 1)], [FACTORED], 8, 64, ignored=0),
    "one-more": lambda: make_problem([random_graph(17, 65, 2)], [FACTORED], 9, 65),
    "one-less": lambda: make_problem([random_graph(15, 63, 3)], [FACTORED], 7, 63),
    "labels": lambda: make_problem([random_graph(18, 33, 4)], [FACTORED], 25, 20),
    "label-tiles": lambda: make_problem([random_graph(14, 47, 6)], [FACTORED], 22, 36),
    "features": lambda: make_problem([random_graph(20, 30, 5)], [FACTORED], 3, 513),
    "many-neighbours": lambda: make_problem(
        [random_graph(5, 260, 8)], [FACTORED], 6, 20, scale=0.1
    ),
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
def matmul_precision() -> Iterator[Callable[[str], None]]:
    """`torch.set_float32_matmul_precision` until the end of a test."""
    former = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(former)


# Errors relative to the largest message or marginal, beside those of plain PyTorch: least, most of
# messages, most of mean field. "high": what three products of TensorFloat32 leave out of each term,
# 2⁻¹⁸ at most. "medium": each of two operands rounded by 2⁻¹¹ at most, of marginals, hidden
# vectors, their sums and the weight. An update makes of an error of energies one of marginals half
# as large at most; as the messages of "grid" add up to 33, whose errors are relative to that, mean
# field in "high" is held to what any operator in float32 is.
PRECISIONS = {
    "highest": (0.0, 2e-6, 2e-6),
    "high": (1e-8, 4e-6, 1e-5),
    "medium": (3e-5, 1.5e-3, 1.5e-3),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("operator", ["pairwise_messages", "mean_field"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_float32_messages_by_precision(
    cuda_target: Target,
    operator: str,
    name: str,
    precision: str,
    matmul_precision: Callable[[str], None],
) -> None:
    problem = PROBLEMS[name]()
    with torch.no_grad():
        exact, plain = (
            OPERATORS[operator](reference, problem.to(CPU, dtype))
            for dtype in (torch.float64, torch.float32)
        )
        matmul_precision(precision)
        result = OPERATORS[operator](
            cuda_target.functions, problem.to(cuda_target.device, torch.float32)
        )
    error, of_plain = (
        float((values.cpu() - exact).abs().max() / exact.abs().max()) for values in (result, plain)
    )
    least, of_messages, of_marginals = PRECISIONS[precision]
    most = of_marginals if operator == "mean_field" else of_messages
    assert least < error < of_plain + most


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_long_sums_keep_their_precision(
    cuda_target: Target, precision: str, matmul_precision: Callable[[str], None]
) -> None:
    """Tensor cores cut what they add: a chain of products is too small by half a bit a step."""
    ends = torch.arange(500) % 20 + 1
    star = EdgeGraph.from_edges(torch.zeros_like(ends), ends, 21)
    problem = make_problem([star], [FACTORED], 3, 20)
    problem = problem.with_tensors({"weight0": problem.tensors["weight0"].abs()})
    exact = reference.pairwise_messages(problem.potentials[0], problem.tensors["marginals"])
    matmul_precision(precision)
    problem = problem.to(cuda_target.device, torch.float32)
    result = cuda_target.functions.pairwise_messages(
        problem.potentials[0], problem.tensors["marginals"]
    )
    assert float((result.cpu() - exact).abs().max() / exact.abs().max()) < 2e-6


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.usefixtures("block_bytes")
def test_float32_gradients_by_precision(
    cuda_target: Target, name: str, precision: str, matmul_precision: Callable[[str], None]
) -> None:
    """Those of products in torch's library are torch's own."""
    problem = PROBLEMS[name]()
    exact = value_and_gradients("pairwise_messages", reference, problem.to(CPU, torch.float64))
    matmul_precision(precision)
    results = value_and_gradients(
        "pairwise_messages", cuda_target.functions, problem.to(cuda_target.device, torch.float32)
    )
    most = {"highest": 4e-6, "high": 1e-5 if cuda_target.device == CPU else 3e-3, "medium": 3e-3}
    errors = {
        name: float((results[name].cpu() - wanted).abs().max() / wanted.abs().max())
        for name, wanted in exact.items()
    }
    assert all(error < most[precision] for error in errors.values()), errors
    if precision == "medium":
        assert min(errors.values()) > 1e-5, errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_field_over_more_potentials_than_a_launch_takes(
    cuda_target: Target, dtype: torch.dtype
) -> None:
    graphs = [random_graph(9, 14, seed) for seed in range(6)]
    check("mean_field", cuda_target, make_problem(graphs, [FACTORED] * 6, 4, 10), dtype)


@pytest.mark.parametrize("kind", [FACTORED, TABLE])
@pytest.mark.parametrize("num_labels", [1, 8, 9, 24, 25, 49])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_number_of_label_tiles(
    cuda_target: Target, kind: str, num_labels: int, dtype: torch.dtype
) -> None:
    problem = make_problem([random_graph(6, 20, 7)], [kind], num_labels, 8)
    check("pairwise_messages", cuda_target, problem, dtype)


# Of up to 512 energies an edge, which lanes hold, and of more; in whole vectors and not.
@pytest.mark.parametrize("kind", [FACTORED, TABLE])
@pytest.mark.parametrize("num_labels", [1, 2, 4, 16, 17, 22, 23, 24])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_loss_of_every_number_of_labels(
    cuda_target: Target, kind: str, num_labels: int, dtype: torch.dtype
) -> None:
    problem = make_problem([random_graph(6, 20, 7)], [kind], num_labels, 8)
    for operator in ("pairwise_nll", "pairwise_nll_mean"):
        check(operator, cuda_target, problem, dtype)


@pytest.mark.parametrize("lowest", [-3e4, 3e4])
def test_the_loss_of_energies_far_from_zero(cuda_target: Target, lowest: float) -> None:
    """Exponentials are of differences, most of which are below what float32 holds."""
    problem = make_problem([random_graph(6, 20, 7)], [TABLE], 5, 8, scale=100)
    problem = problem.with_tensors({"table0": problem.tensors["table0"] + lowest})
    check("pairwise_nll_mean", cuda_target, problem, torch.float32)


@pytest.mark.parametrize("dim", [11, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_hidden_value_of_zero_gets_no_gradient(
    cuda_target: Target, dtype: torch.dtype, dim: int
) -> None:
    """One just above zero does, and so does one that is not a number, as in torch."""
    graph = EdgeGraph.from_edges(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3]), 4)
    problem = make_problem([graph], [FACTORED], 2, dim, ignored=0)
    target = torch.zeros_like(problem.tensors["target0"])
    target[2], target[3, 7] = 1e-30, torch.nan
    problem = problem.with_tensors({"source0": torch.zeros_like(target), "target0": target})
    problem = problem.to(cuda_target.device, dtype)
    gradient = value_and_gradients("pairwise_nll_mean", cuda_target.functions, problem)["target0"]
    assert (gradient[1] == 0).all()
    assert (gradient[2] != 0).all()
    assert gradient[3].isnan().nonzero().flatten().tolist() == [7]
