"""What holds for every operator: accuracy, gradients, layouts, dtypes, compilation, determinism."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from accuracy import TOLERANCE, assert_accurate, assert_close
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    FACTORED,
    OPERATORS,
    TABLE,
    Problem,
    grid_problem,
    make_problem,
    random_graph,
    used_tensors,
    value_and_gradients,
)
from strategies import problems
from targets import Target
from threads import torch_threads
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from deepcrf_ext import EdgeGraph, reference

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_kind = pytest.mark.parametrize("kind", [FACTORED, TABLE])


def check_against_reference(
    operator: str, target: Target, problem: Problem, dtype: torch.dtype
) -> None:
    """Check value and gradients on the target against the reference in float64."""
    rounded = problem.to(CPU, dtype)
    assert_accurate(
        value_and_gradients(operator, target.functions, rounded.to(target.device, dtype)),
        value_and_gradients(operator, reference, rounded),
        value_and_gradients(operator, reference, rounded.to(CPU, torch.float64)),
    )


# Sizes cross the borders of vector and matrix tiles in every dimension.
SHAPES = {
    "one-label": lambda kind: grid_problem(3, 4, kind, 1, 5),
    "grid": lambda kind: grid_problem(7, 9, kind, 7, 33),
    "odd": lambda kind: make_problem([random_graph(37, 131, 1)], [kind], 17, 67),
    "many-labels": lambda kind: make_problem([random_graph(19, 70, 2)], [kind], 33, 70),
    "one-channel": lambda kind: make_problem([random_graph(20, 45, 3)], [kind], 2, 1),
    "hub": lambda kind: make_problem([hub_graph(150)], [kind], 5, 16),
    "wide": lambda kind: make_problem([random_graph(9, 17, 4)], [kind], 3, 257),
    "paper": lambda kind: make_problem([random_graph(12, 40, 5)], [kind], 21, 512),
}


def hub_graph(num_edges: int) -> EdgeGraph:
    """A node joined to many, both ways: one long row in each direction."""
    spokes = torch.arange(num_edges) % 60 + 1
    hub = torch.zeros_like(spokes)
    return EdgeGraph.from_edges(torch.cat([hub, spokes]), torch.cat([spokes, hub]), 61)


@every_operator
@every_kind
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy(
    operator_target: Target, operator: str, kind: str, shape: str, dtype: torch.dtype
) -> None:
    if (operator_target.name, shape, dtype) == ("cuda_on_host", "paper", torch.float64):
        pytest.skip("takes minutes in emulation; other shapes cross the same borders")
    check_against_reference(operator, operator_target, SHAPES[shape](kind), dtype)


@every_operator
@given(
    problem=problems(label_counts=[1, 2, 3, 7, 17], dims=st.integers(1, 70), max_edges=20),
    dtype=st.sampled_from(DTYPES),
)
def test_ragged_problems(
    operator_target: Target, operator: str, problem: Problem, dtype: torch.dtype
) -> None:
    check_against_reference(operator, operator_target, problem, dtype)


@every_operator
@every_kind
def test_gradients_are_those_of_finite_differences(
    target: Target, operator: str, kind: str
) -> None:
    problem = make_problem([random_graph(5, 9, 6)], [kind], 3, 4)
    problem = problem.to(target.device, torch.float64)
    names = used_tensors(operator, problem)

    def function(*tensors: Tensor) -> Tensor:
        tensors_by_name = dict(zip(names, tensors, strict=True))
        return OPERATORS[operator](target.functions, problem.with_tensors(tensors_by_name))

    leaves = [problem.tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def transposed(tensor: Tensor) -> Tensor:
    """The same values, the first dimension innermost."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def every_other(tensor: Tensor) -> Tensor:
    """The same values, every second of a tensor whose others are NaN."""
    padded = torch.full((*tensor.shape, 2), torch.nan, dtype=tensor.dtype, device=tensor.device)
    padded[..., 0] = tensor
    return padded[..., 0]


def shifted(tensor: Tensor) -> Tensor:
    """The same values, contiguous, but not aligned to a vector."""
    storage = tensor.new_full((tensor.numel() + 1,), torch.nan)
    storage[1:] = tensor.flatten()
    return storage[1:].view(tensor.shape)


@every_operator
@every_kind
@pytest.mark.parametrize("layout", [transposed, every_other, shifted])
def test_strides_do_not_matter(
    operator_target: Target, operator: str, kind: str, layout: Callable[[Tensor], Tensor]
) -> None:
    problem = grid_problem(5, 6, kind, 5, 19).to(operator_target.device, torch.float32)
    contiguous = value_and_gradients(operator, operator_target.functions, problem)
    strided = value_and_gradients(
        operator, operator_target.functions, problem.map(layout), upstream_layout=layout
    )
    for name, wanted in contiguous.items():
        assert_close(strided[name], wanted)


@every_operator
@every_kind
def test_expanded_tensors(operator_target: Target, operator: str, kind: str) -> None:
    problem = grid_problem(5, 6, kind, 5, 19).to(operator_target.device, torch.float32)
    problem = problem.map(lambda tensor: tensor[:1].expand_as(tensor))
    problem = replace(problem, labels=problem.labels[:1].expand_as(problem.labels))
    assert all(value.stride(0) == 0 for value in problem.tensors.values())

    def same(upstream: Tensor) -> Tensor:
        return upstream.flatten()[0].expand(upstream.shape)

    expanded = value_and_gradients(
        operator, operator_target.functions, problem, upstream_layout=same
    )
    dense = value_and_gradients(
        operator, operator_target.functions, problem.map(Tensor.contiguous), upstream_layout=same
    )
    for name, wanted in dense.items():
        assert_close(expanded[name], wanted)


@every_operator
@every_kind
def test_gradient_of_one_input_alone(operator_target: Target, operator: str, kind: str) -> None:
    problem = grid_problem(4, 5, kind, 4, 11).to(operator_target.device, torch.float32)
    everything = value_and_gradients(operator, operator_target.functions, problem)
    for name in used_tensors(operator, problem):
        alone = value_and_gradients(operator, operator_target.functions, problem, [name])
        assert_close(alone["value"], everything["value"])
        assert_close(alone[name], everything[name])


@every_operator
@every_kind
@pytest.mark.parametrize("power", [1, 2])
def test_double_backward_is_refused(
    real_target: Target, operator: str, kind: str, power: int
) -> None:
    problem = make_problem([random_graph(5, 9, 7)], [kind], 3, 4)
    problem = problem.to(real_target.device, torch.float64)
    names = used_tensors(operator, problem)
    leaves = {name: problem.tensors[name].detach().requires_grad_() for name in names}
    value = OPERATORS[operator](real_target.functions, problem.with_tensors(leaves))
    first = torch.autograd.grad(value.pow(power).sum(), leaves.values(), create_graph=True)
    penalty = sum((gradient.square().sum() for gradient in first), torch.zeros(()))
    message = r"deepcrf_ext\W+\w+.*(no autograd formula|gradient is not implemented)"
    with pytest.raises(RuntimeError, match=message):
        penalty.backward()


@every_operator
@every_kind
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(
    operator_target: Target,
    operator: str,
    kind: str,
    mode: Callable[[], AbstractContextManager[Any]],
) -> None:
    problem = grid_problem(4, 5, kind, 4, 11).to(operator_target.device, torch.float32)
    wanted = OPERATORS[operator](operator_target.functions, problem)
    with mode():
        problem = problem.map(lambda tensor: tensor.clone().requires_grad_())
        value = OPERATORS[operator](operator_target.functions, problem)
    assert not value.requires_grad
    assert torch.equal(value, wanted)


@every_operator
@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_are_bitwise_equal(
    real_target: Target, operator: str, kind: str, dtype: torch.dtype
) -> None:
    problem = grid_problem(9, 11, kind, 6, 40).to(real_target.device, dtype)
    first = value_and_gradients(operator, real_target.functions, problem)
    second = value_and_gradients(operator, real_target.functions, problem)
    for name, wanted in first.items():
        assert torch.equal(second[name], wanted), name


@every_operator
@every_kind
@pytest.mark.parametrize("shape", ["grid", "hub"])
def test_number_of_threads_changes_only_rounding(
    real_target: Target, operator: str, kind: str, shape: str
) -> None:
    problem = SHAPES[shape](kind).to(real_target.device, torch.float32)
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            results.append(value_and_gradients(operator, real_target.functions, problem))
    for other in results[1:]:
        for name, wanted in results[0].items():
            assert_close(other[name], wanted)


@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "pairwise_nll_mean"])
@every_kind
def test_batched_graphs_are_independent(target: Target, operator: str, kind: str) -> None:
    parts = [grid_problem(h, w, kind, 4, 11, seed=h) for h, w in [(3, 5), (1, 1), (4, 3)]]
    graphs = zip(*(part.graphs for part in parts), strict=True)
    shared = {
        name: value for name, value in parts[0].tensors.items() if name.startswith(("w", "b"))
    }
    parts = [part.with_tensors(shared).to(target.device, torch.float32) for part in parts]
    batch = Problem(
        tuple(EdgeGraph.batch(list(scales)).to(target.device) for scales in graphs),
        parts[0].kinds,
        {
            name: value if name in shared else torch.cat([part.tensors[name] for part in parts])
            for name, value in parts[0].tensors.items()
        },
        torch.cat([part.labels for part in parts]),
        parts[0].ignore_index,
    )
    separate = [OPERATORS[operator](target.functions, part) for part in parts]
    assert_close(OPERATORS[operator](target.functions, batch), torch.cat(separate))


@every_operator
@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_huge_and_tiny_energies_stay_finite(
    target: Target, operator: str, kind: str, dtype: torch.dtype, scale: float
) -> None:
    if dtype == torch.float16:
        scale = min(scale, 100)  # whose sums over the edges of a node it holds
    problem = grid_problem(5, 6, kind, 5, 19, scale=scale).to(target.device, dtype)
    results = value_and_gradients(operator, target.functions, problem)
    for name, result in results.items():
        assert result.isfinite().all(), name
    if "nll" in operator:
        assert (results["value"] >= -TOLERANCE[dtype] * scale).all()
        check_against_reference(operator, target, problem.to(CPU, torch.float64), torch.float64)


@every_operator
@every_kind
def test_compiles_whole(operator_target: Target, operator: str, kind: str) -> None:
    problem = grid_problem(4, 5, kind, 4, 11).to(operator_target.device, torch.float32)
    names = used_tensors(operator, problem)

    def function(labels: Tensor, *tensors: Tensor) -> Tensor:
        inputs = {**problem.tensors, **dict(zip(names, tensors, strict=True))}
        traced = Problem(problem.graphs, problem.kinds, inputs, labels, problem.ignore_index)
        return OPERATORS[operator](operator_target.functions, traced)

    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = []
    for run in (compiled, function):
        leaves = [problem.tensors[name].detach().requires_grad_() for name in names]
        value = run(problem.labels, *leaves)
        gradients = torch.autograd.grad(value.square().sum(), leaves, materialize_grads=True)
        results.append([value.detach(), *gradients])
    for result, wanted in zip(*results, strict=True):
        assert_close(result, wanted)


Call = tuple[torch._ops.OpOverload, tuple[Any, ...], dict[str, Any]]


class ForwardCalls(TorchFunctionMode):
    """Records the package's operator calls above autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "namespace", None) == "deepcrf_ext":
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


class BackwardCalls(TorchDispatchMode):
    """Records the package's operator calls below autograd, which know no further gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "deepcrf_ext":
            detached = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))
            self.calls.append((function, *detached))
        return function(*args, **(kwargs or {}))


@every_operator
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_registered_operators_pass_opcheck(
    operator_target: Target, operator: str, kind: str, dtype: torch.dtype
) -> None:
    problem = grid_problem(3, 4, kind, 3, 5).to(operator_target.device, dtype)
    leaves = problem.map(lambda tensor: tensor.detach().requires_grad_())
    with ForwardCalls() as forward:
        OPERATORS[operator](operator_target.functions, problem)
        value = OPERATORS[operator](operator_target.functions, leaves)
    with BackwardCalls() as backward:
        value.sum().backward()
    assert forward.calls
    assert backward.calls
    checked = set()
    for function, args, kwargs in forward.calls + backward.calls:
        if function not in checked:
            checked.add(function)
            torch.library.opcheck(function, args, kwargs)


@every_operator
def test_arguments_are_left_alone(operator_target: Target, operator: str) -> None:
    problem = grid_problem(4, 5, FACTORED, 4, 11).to(operator_target.device, torch.float32)
    before = {name: value.clone() for name, value in problem.tensors.items()}
    labels = problem.labels.clone()
    value_and_gradients(operator, operator_target.functions, problem)
    assert torch.equal(problem.labels, labels)
    for name, value in problem.tensors.items():
        assert torch.equal(value, before[name]), name


@every_operator
def test_factored_equals_its_table(target: Target, operator: str) -> None:
    factored = grid_problem(4, 5, FACTORED, 4, 11).to(target.device, torch.float64)
    tables = {f"table{i}": potential.energies() for i, potential in enumerate(factored.potentials)}
    table = replace(factored.with_tensors(tables), kinds=(TABLE, TABLE))
    value = OPERATORS[operator](target.functions, factored)
    assert_close(value, OPERATORS[operator](target.functions, table))
