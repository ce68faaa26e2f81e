"""Operators under `torch.autocast`: they behave like matrix products, losses like cross_entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import assert_close
from problems import (
    FACTORED,
    OPERATORS,
    TABLE,
    Problem,
    make_problem,
    random_graph,
    used_tensors,
    value_and_gradients,
)
from targets import Target
from torch import Tensor, nn

from deepcrf_ext import EdgeGraph, FactoredPotential, RangeBox

CPU = torch.device("cpu")
every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_kind = pytest.mark.parametrize("kind", [FACTORED, TABLE])
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def small_problem(kind: str = FACTORED, dtype: torch.dtype = torch.float32) -> Problem:
    problem = make_problem([random_graph(6, 40, 8)], [kind], 4, 11)
    assert problem.graphs[0].num_self_loops
    return problem.to(CPU, dtype)


class Autocast:
    """Functions that run under autocast, as forward passes do; backward ones do not."""

    def __init__(self, functions: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.functions, self.device, self.dtype = functions, device, dtype

    def __getattr__(self, name: str) -> Any:
        return torch.autocast(self.device.type, self.dtype)(getattr(self.functions, name))


def rounded(problem: Problem, dtype: torch.dtype) -> Problem:
    """The potential rounded to `dtype`, all else as it is; everything in float32."""
    names = [
        name for name in problem.tensors if name[:-1] in ("source", "target", "weight", "bias")
    ]
    return problem.with_tensors({name: problem.tensors[name].to(dtype).float() for name in names})


@every_operator
@every_kind
@half
def test_computes_factored_potentials_in_the_autocast_dtype(
    operator_target: Target, operator: str, kind: str, dtype: torch.dtype
) -> None:
    problem = small_problem(kind).to(operator_target.device, torch.float32)
    functions = Autocast(operator_target.functions, operator_target.device, dtype)
    results = value_and_gradients(operator, functions, problem)
    wanted = value_and_gradients(operator, operator_target.functions, rounded(problem, dtype))
    of_product = dtype if operator == "pairwise_messages" else torch.float32
    for name, value in wanted.items():
        is_result = name in ("value", "prediction")
        assert results[name].dtype == (of_product if is_result else torch.float32), name
        error = (results[name].double() - value.double()).abs().max()
        assert error <= 2e-2 * value.abs().max(), name


@every_operator
@every_kind
def test_leaves_float64_alone(operator_target: Target, operator: str, kind: str) -> None:
    problem = small_problem(kind).to(operator_target.device, torch.float64)
    functions = Autocast(operator_target.functions, operator_target.device, torch.bfloat16)
    results = value_and_gradients(operator, functions, problem)
    wanted = value_and_gradients(operator, operator_target.functions, problem)
    for name, value in wanted.items():
        assert results[name].dtype == torch.float64
        assert torch.equal(results[name], value), name


@every_operator
@every_kind
@half
def test_takes_mixed_dtypes(
    operator_target: Target, operator: str, kind: str, dtype: torch.dtype
) -> None:
    """As half-precision linear layers, float32 parameters and float32 marginals give them."""
    problem = small_problem(kind).to(operator_target.device, torch.float32)
    halves = {name: problem.tensors[name].to(dtype) for name in ("source0", "target0", "table0")
              if name in problem.tensors}  # fmt: skip
    mixed = problem.with_tensors(halves)

    with torch.autocast(operator_target.device.type, dtype):
        leaves = mixed.map(lambda tensor: tensor.detach().requires_grad_())
        value = OPERATORS[operator](operator_target.functions, leaves)
        wanted = OPERATORS[operator](operator_target.functions, problem)
    value.sum().backward()
    assert value.dtype == wanted.dtype
    torch.testing.assert_close(value, wanted, rtol=3e-2, atol=3e-2)
    for name in used_tensors(operator, leaves):
        gradient = leaves.tensors[name].grad
        assert gradient is not None, name
        assert gradient.dtype == leaves.tensors[name].dtype, name
        assert gradient.isfinite().all(), name


@half
def test_a_potential_of_mixed_dtypes_is_of_the_autocast_dtype(dtype: torch.dtype) -> None:
    problem = small_problem()
    tensors = [problem.tensors[name] for name in ("source0", "target0", "weight0", "bias0")]
    tensors[0] = tensors[0].to(dtype)
    with torch.autocast("cpu", dtype):
        potential = FactoredPotential(problem.graphs[0], *tensors)
    assert potential.dtype == dtype
    assert potential.weight.dtype == potential.bias.dtype == dtype
    with pytest.raises(TypeError, match=rf"^target: got dtype torch.float32, must be {dtype} as"):
        FactoredPotential(problem.graphs[0], *tensors)


@pytest.mark.parametrize("wide", ["source0", "weight0", "unary", "marginals"])
def test_float64_beside_others_is_refused(operator_target: Target, wide: str) -> None:
    problem = small_problem().to(operator_target.device, torch.float32)
    problem = problem.with_tensors({wide: problem.tensors[wide].double()})
    operator = "pairwise_messages" if wide == "marginals" else "mean_field"
    for context in (torch.autocast("cpu", torch.bfloat16), torch.enable_grad()):
        with context, pytest.raises(TypeError, match="got dtype torch.float"):
            OPERATORS[operator](operator_target.functions, problem)


def test_outside_of_autocast_a_mixture_is_refused(host_target: Target) -> None:
    problem = small_problem()
    with pytest.raises(TypeError, match=r"^marginals: got dtype torch.float32, must be"):
        host_target.functions.pairwise_messages(
            small_problem(dtype=torch.float16).potentials[0], problem.tensors["marginals"]
        )
    with pytest.raises(TypeError, match=r"^potentials\[0\]: got dtype torch.bfloat16, must be"):
        host_target.functions.mean_field(
            problem.tensors["unary"], small_problem(dtype=torch.bfloat16).potentials
        )


class Head(nn.Module):
    """Features [N, C] to a pairwise potential and unary energies, as a user's network has them."""

    def __init__(self, graph: EdgeGraph, channels: int, num_labels: int) -> None:
        super().__init__()
        self.graph = graph
        self.source, self.target = nn.Linear(channels, 8), nn.Linear(channels, 8, bias=False)
        self.unary = nn.Linear(channels, num_labels)
        self.weight = nn.Parameter(0.3 * torch.randn(num_labels, num_labels, 8))
        self.bias = nn.Parameter(torch.zeros(num_labels, num_labels))

    def forward(self, features: Tensor) -> tuple[Tensor, FactoredPotential]:
        source, target = self.source(features), self.target(features)
        potential = FactoredPotential(self.graph, source, target, self.weight, self.bias)
        return self.unary(features), potential


@pytest.mark.parametrize("loss", ["pairwise", "pseudo", "end_to_end"])
def test_trains_with_a_gradient_scaler(operator_target: Target, loss: str) -> None:
    """float16 autocast: losses are float32, and the scale stays near its start of 65536.

    A gradient above 1 in a parameter that was cast is then more than float16 holds, as it is behind
    a matrix product: the scaler skips the step and halves the scale.
    """
    torch.manual_seed(0)
    functions, device = operator_target.functions, operator_target.device
    graph = EdgeGraph.from_range_box(5, 6, RangeBox(-1, 1, -1, 1)).to(device)
    head = Head(graph, 5, 3).to(device)
    features = torch.randn(30, 5, device=device)
    labels = features[:, :3].argmax(1)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler(device.type, init_scale=65536.0)
    values = []
    for _ in range(12):
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.float16):
            unary, potential = head(features)
            assert unary.dtype == potential.dtype == torch.float16
            if loss == "pairwise":
                value = functions.pairwise_nll(potential, labels)
            elif loss == "pseudo":
                value = functions.pseudo_likelihood_nll(unary, [potential], labels)
            else:
                marginals = functions.mean_field(unary, [potential])
                value = nn.functional.nll_loss(marginals.clamp(min=1e-6).log(), labels)
        assert value.dtype == torch.float32
        scaler.scale(value).backward()
        scaler.step(optimiser)
        scaler.update()
        values.append(value.item())
    assert scaler.get_scale() >= (65536.0 if loss == "pairwise" else 8192.0)
    assert values[-1] < values[0]


@every_kind
def test_compiled_code_sees_autocast(operator_target: Target, kind: str) -> None:
    problem = small_problem(kind).to(operator_target.device, torch.float32)

    def function(table_or_source: Tensor) -> Tensor:
        name = "table0" if kind == TABLE else "source0"
        changed = problem.with_tensors({name: table_or_source})
        with torch.autocast(operator_target.device.type, torch.bfloat16):
            return operator_target.functions.pairwise_nll(
                changed.potentials[0], problem.labels, problem.ignore_index
            )

    torch.compiler.reset()
    leaf = problem.tensors["table0" if kind == TABLE else "source0"]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert compiled(leaf).dtype == torch.float32
    assert_close(compiled(leaf), function(leaf))
