"""Fixtures of the operator tests, and the settings of hypothesis for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import settings
from targets import OPERATOR_TARGETS, TARGETS, Target

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("fixed")


@contextmanager
def active(target: Target) -> Iterator[Target]:
    """The target active, on one thread: the problems are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with target.activate():
            yield target
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every implementation of the public functions in turn, active while its tests run."""
    with active(request.param) as chosen:
        yield chosen


@pytest.fixture(scope="module", params=OPERATOR_TARGETS, ids=lambda target: target.name)
def operator_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """As `target`, without the plain PyTorch reference."""
    with active(request.param) as chosen:
        yield chosen


@pytest.fixture(
    scope="module",
    params=[target for target in TARGETS if target.device.type == "cpu"],
    ids=lambda target: target.name,
)
def host_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """As `target`, on CPU tensors only: there label values are looked at before the work."""
    with active(request.param) as chosen:
        yield chosen
