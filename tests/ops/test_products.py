"""What torch's settings of matrix products do to the operators, and these to the settings."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from problems import FACTORED, OPERATORS, grid_problem, value_and_gradients
from targets import Target
from tiles_on_host.host_module import tiles_on_host

import deepcrf_ext as dc
from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._products import whole_sums

CPU = torch.device("cpu")
MATMUL: Any = torch.backends.cuda.matmul
REDUCED = "allow_bf16_reduced_precision_reduction"

needs_fp32_precision = pytest.mark.skipif(
    not hasattr(MATMUL, "fp32_precision"), reason="torch 2.9 and later have fp32_precision"
)


@pytest.fixture(params=["cuda", "mkldnn"])
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`torch.backends.cuda.matmul`, or that of `mkldnn`; both as they were, afterwards."""
    backends: Any = torch.backends
    both = [backends.cuda.matmul, backends.mkldnn.matmul]
    former = [backend.fp32_precision for backend in both]
    yield getattr(backends, request.param).matmul
    for matmul, precision in zip(both, former, strict=True):
        matmul.fp32_precision = precision


@needs_fp32_precision
@pytest.mark.parametrize("operator", OPERATORS)
def test_precision_that_was_set_of_a_backend(
    operator_target: Target, operator: str, backend: Any
) -> None:
    """After which `torch.get_float32_matmul_precision` raises."""
    problem = grid_problem(4, 5, FACTORED, 4, 11).to(operator_target.device, torch.float32)
    wanted = value_and_gradients(operator, operator_target.functions, problem)
    backend.fp32_precision = "tf32"
    results = value_and_gradients(operator, operator_target.functions, problem)
    for name, value in results.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-2, atol=1e-2)


@needs_fp32_precision
@pytest.mark.parametrize("backend", ["mkldnn"], indirect=True)
@pytest.mark.parametrize(("precision", "wanted"), [("bf16", "medium"), ("tf32", "high")])
def test_tiles_multiply_as_the_backend_of_the_cpu_says(
    backend: Any, precision: str, wanted: str
) -> None:
    problem = grid_problem(4, 5, FACTORED, 9, 33).to(CPU, torch.float32)
    unary, potentials = problem.tensors["unary"], problem.potentials
    results = []
    with tiles_on_host():
        for which in ("ieee", precision):
            backend.fp32_precision = which
            results.append(dc.mean_field(unary, potentials))
        backend.fp32_precision = "ieee"
        former = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(wanted)
        try:
            results.append(dc.mean_field(unary, potentials))
        finally:
            torch.set_float32_matmul_precision(former)
    exact, by_backend, by_name = results
    assert torch.equal(by_backend, by_name)
    assert not torch.equal(by_backend, exact)


@needs_fp32_precision
@pytest.mark.parametrize(
    ("precision", "wanted"), [("tf32", ("high", "highest")), ("ieee", ("highest", "highest"))]
)
@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_precision_by_backend(backend: Any, precision: str, wanted: tuple[str, str]) -> None:
    backend.fp32_precision = precision
    assert tuple(map(_backend.float32_precision, (True, False))) == wanted


def test_threads_leave_the_settings_as_they_were() -> None:
    assert getattr(MATMUL, REDUCED) is True
    first_came, second_came, first_left = Event(), Event(), Event()

    def first() -> None:
        with whole_sums(CPU):
            first_came.set()
            assert second_came.wait(60)
        first_left.set()

    def second() -> bool:
        assert first_came.wait(60)
        with whole_sums(CPU):
            second_came.set()
            assert first_left.wait(60)
            return bool(getattr(MATMUL, REDUCED))

    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(first), pool.submit(second)]
        assert [thread.result() for thread in threads] == [None, False]
    assert getattr(MATMUL, REDUCED) is True


@pytest.mark.skipif(not hasattr(MATMUL, f"{REDUCED}_split_k"), reason="torch knows no split")
def test_the_splits_that_were_forbidden_stay_so() -> None:
    setattr(MATMUL, REDUCED, (False, False))
    try:
        with whole_sums(CPU):
            assert getattr(MATMUL, f"{REDUCED}_split_k") is False
        assert getattr(MATMUL, REDUCED) is False
        assert getattr(MATMUL, f"{REDUCED}_split_k") is False
    finally:
        setattr(MATMUL, REDUCED, (True, True))
