"""What every operator says of dtypes and devices that it does not know, and of NumPy's integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from problems import FACTORED, TABLE, Problem, make_problem, random_graph
from targets import Target
from torch import Tensor

from deepcrf_ext import (
    DenseCRFParams,
    EdgeGraph,
    FactoredPotential,
    TablePotential,
    unary_from_labels,
)

UNSUPPORTED = [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def small_problem(kind: str = FACTORED) -> Problem:
    problem = make_problem([random_graph(6, 14, 8)], [kind], 3, 5)
    return problem.to(torch.device("cpu"), torch.float32)


# What takes floating-point tensors: argument -> a call with that argument alone changed.
TAKERS: dict[str, Callable[[Target, Problem, Callable[[Tensor], Tensor]], Any]] = {
    "source": lambda target, problem, change: FactoredPotential(
        problem.graphs[0],
        *(change(problem.tensors[name]) for name in ("source0", "target0", "weight0", "bias0")),
    ),
    "energies": lambda target, problem, change: TablePotential(
        problem.graphs[0], change(torch.zeros(14, 3, 3))
    ),
    "unary": lambda target, problem, change: target.functions.mean_field(
        change(problem.tensors["unary"]), problem.potentials
    ),
    "features": lambda target, problem, change: target.functions.permutohedral_filter(
        torch.zeros(6, 2), change(torch.zeros(6, 2))
    ),
    "values": lambda target, problem, change: target.functions.permutohedral_filter(
        change(torch.zeros(6, 2)), torch.zeros(6, 2)
    ),
}


@pytest.mark.parametrize("argument", TAKERS)
@pytest.mark.parametrize("dtype", UNSUPPORTED, ids=str)
def test_unsupported_dtypes_are_told_the_supported(
    host_target: Target, argument: str, dtype: torch.dtype
) -> None:
    problem = small_problem()
    match = rf"^{argument}: got dtype {dtype}, must be .*float16, bfloat16, float32 or float64"
    with pytest.raises(TypeError, match=match):
        TAKERS[argument](host_target, problem, lambda tensor: tensor.to(dtype))


@pytest.mark.parametrize("argument", ["source", "energies"])
def test_unsupported_devices_are_told_the_supported(host_target: Target, argument: str) -> None:
    problem = small_problem()
    problem = problem.map(lambda tensor: tensor.to("meta"))
    match = rf"^{argument}: got device meta, must be a cpu or cuda device"
    with pytest.raises(ValueError, match=match):
        TAKERS[argument](host_target, problem, lambda tensor: tensor.to("meta"))


@pytest.mark.parametrize("kind", [FACTORED, TABLE])
@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, torch.tensor])
def test_integers_of_other_libraries(
    host_target: Target, kind: str, integer: Callable[[int], Any]
) -> None:
    problem, functions = small_problem(kind), host_target.functions
    unary, potentials, labels = problem.tensors["unary"], problem.potentials, problem.labels
    for call in (
        lambda number: functions.mean_field(unary, potentials, number(3)),
        lambda number: functions.pairwise_nll(potentials[0], labels, number(255)),
        lambda number: functions.pseudo_likelihood_nll(unary, potentials, labels, number(255)),
    ):
        assert torch.equal(call(integer), call(int))
    assert EdgeGraph.from_edges(labels[:0], labels[:0], integer(7)).num_nodes == 7


@pytest.mark.parametrize("wrong", [True, np.bool_(True), 2.0, np.float32(2), "2", None])
def test_what_is_no_integer(host_target: Target, wrong: Any) -> None:
    problem, functions = small_problem(), host_target.functions
    unary, potentials, labels = problem.tensors["unary"], problem.potentials, problem.labels
    with pytest.raises(TypeError, match=r"^iterations: got .*must be an int"):
        functions.mean_field(unary, potentials, wrong)
    for call in (
        lambda: functions.pairwise_nll(potentials[0], labels, wrong),
        lambda: functions.pseudo_likelihood_nll(unary, potentials, labels, wrong),
    ):
        with pytest.raises(TypeError, match=r"^ignore_index: got .*must be an int"):
            call()


NESTED = "^{}: got a nested tensor, must be a dense tensor"
QUANTISED = "^{}: got dtype torch.quint8, must not be quantised"


def nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([tensor])


def quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor.float(), 1.0, 0, torch.quint8)


@pytest.mark.parametrize(("change", "match"), [(nested, NESTED), (quantised, QUANTISED)])
def test_nested_and_quantised_tensors_are_refused_by_name(
    host_target: Target, change: Callable[[Tensor], Tensor], match: str
) -> None:
    problem, functions = small_problem(), host_target.functions
    for argument, take in TAKERS.items():
        with pytest.raises(TypeError, match=match.format(argument)):
            take(host_target, problem, change)
    with pytest.raises(TypeError, match=match.format("labels")):
        functions.pairwise_nll(problem.potentials[0], change(problem.labels))
    probabilities, image = torch.full((1, 2, 3, 4), 0.5), torch.zeros(1, 3, 3, 4)
    with pytest.raises(TypeError, match=match.format("image")):
        functions.gated_crf_loss(probabilities, change(image))
    with pytest.raises(TypeError, match=match.format("mask")):
        functions.gated_crf_loss(probabilities, image, mask=change(image[:, 0]))


@pytest.mark.parametrize("argument", ["source_index", "target_index"])
def test_ends_of_edges_that_are_no_plain_tensors(argument: str) -> None:
    for change, kind, match in (
        (nested, TypeError, NESTED),
        (quantised, TypeError, QUANTISED),
        (torch.Tensor.to_sparse, TypeError, "^{}: got layout torch.sparse_coo"),
        (lambda index: index.to("meta"), ValueError, "^{}: got (device )?meta, must be "),
    ):
        ends = dict.fromkeys(("source_index", "target_index"), torch.tensor([1, 2]))
        ends[argument] = change(ends[argument])
        with pytest.raises(kind, match=match.format(argument)):
            EdgeGraph.from_edges(**ends, num_nodes=3)


def test_images_of_eight_bit_floats_are_told_the_supported(host_target: Target) -> None:
    unary, image = torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 3, 4).to(torch.float8_e4m3fn)
    match = "^image: got dtype torch.float8_e4m3fn, must be uint8 or .*float16, bfloat16, float32"
    for name in ("dense_crf", "dense_crf_loss", "gated_crf_loss"):
        with pytest.raises(TypeError, match=match):
            getattr(host_target.functions, name)(unary, image)


@pytest.mark.parametrize("iterations", [2**31, 2**70])
def test_more_iterations_than_kernels_count(host_target: Target, iterations: int) -> None:
    problem, functions = small_problem(), host_target.functions
    with pytest.raises(ValueError, match=rf"^iterations: got {iterations}, must be below 2\*\*31"):
        functions.mean_field(problem.tensors["unary"], problem.potentials, iterations)
    energies, image = torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 3, 4)
    with pytest.raises(ValueError, match="^iterations: got"):
        functions.dense_crf(energies, image, iterations=iterations)


@pytest.mark.parametrize("wrong", [np.array(["mean", "sum"]), torch.zeros(2), None, ["mean"]])
def test_choices_that_are_no_words(host_target: Target, wrong: Any) -> None:
    problem, functions = small_problem(), host_target.functions
    with pytest.raises(ValueError, match="^reduction: got .*must be one of mean, sum, none"):
        functions.pairwise_nll(problem.potentials[0], problem.labels, reduction=wrong)
    with pytest.raises(ValueError, match="^normalisation: got .*must be one of"):
        DenseCRFParams(normalisation=wrong)


def test_labels_without_values_make_no_energies() -> None:
    with pytest.raises(ValueError, match="^labels: got device meta, must be a cpu or cuda device"):
        unary_from_labels(torch.zeros(1, 3, 4, dtype=torch.long, device="meta"), 2, 0.7)
