"""Fixtures of the operator tests, and the settings of hypothesis for all tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext

import pytest
from hypothesis import settings
from targets import OPERATOR_TARGETS, TARGETS, Target
from threads import torch_threads

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("fixed")


@contextmanager
def active(target: Target) -> Iterator[None]:
    """The target active, on one thread: the problems are too small to share."""
    with torch_threads(1), target.activate():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, object, object]:
    """Activate a test's target for that test alone: others of its module must not see it."""
    targets = [value for value in item.funcargs.values() if isinstance(value, Target)]
    with active(targets[0]) if targets else nullcontext():
        return (yield)


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    """Every implementation of the public functions in turn, active while its tests run."""
    return request.param


@pytest.fixture(scope="module", params=OPERATOR_TARGETS, ids=lambda target: target.name)
def operator_target(request: pytest.FixtureRequest) -> Target:
    """As `target`, without the plain PyTorch reference."""
    return request.param


@pytest.fixture(
    scope="module",
    params=[target for target in TARGETS if target.device.type == "cpu"],
    ids=lambda target: target.name,
)
def host_target(request: pytest.FixtureRequest) -> Target:
    """As `target`, on CPU tensors only: there label values are looked at before the work."""
    return request.param


@pytest.fixture(
    params=[target for target in OPERATOR_TARGETS if target.name != "cpu"],
    ids=lambda target: target.name,
)
def cuda_target(request: pytest.FixtureRequest) -> Target:
    """Every target that runs the CUDA kernels, active while its tests run."""
    return request.param


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for the tests and the further fixtures of a module, whose models are tiny."""
    with torch_threads(1):
        yield
