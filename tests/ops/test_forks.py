"""Operators in other processes and threads, after parallel work in the parent."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool, ThreadPool

import numpy as np
import pytest
import torch
from dense_problems import scene
from numpy.typing import NDArray
from problems import FACTORED, OPERATORS, TABLE, grid_problem, value_and_gradients
from threads import torch_threads
from torch.utils.data import DataLoader

import deepcrf_ext
from deepcrf_ext import RangeBox, dense_crf, permutohedral_filter, pydensecrf

TIMEOUT = 60  # seconds: what hangs, hangs for ever


def drop_in() -> NDArray[np.float32]:
    unary, image = scene(40, 50, 5)
    crf = pydensecrf.DenseCRF2D(50, 40, 5)
    crf.setUnaryEnergy(unary[0].flatten(1).numpy())
    crf.addPairwiseGaussian(3, 3)
    crf.addPairwiseBilateral(60, 10, image[0].permute(1, 2, 0).numpy(), 5)
    return crf.inference(3)


def dense() -> NDArray[np.float32]:
    return dense_crf(*scene(40, 50, 5)).numpy()


def learnt_dense() -> NDArray[np.float32]:
    unary, image = scene(20, 30, 3)
    unary.requires_grad_()
    dense_crf(unary, image, iterations=2).square().sum().backward()
    assert unary.grad is not None
    return unary.grad.numpy()


def filtered() -> NDArray[np.float32]:
    return permutohedral_filter(torch.ones(6000, 3), torch.linspace(0, 50, 6000)[:, None]).numpy()


def filtered_on_two_threads() -> NDArray[np.float32]:
    """Also where a process asks for threads of its own."""
    with torch_threads(2):
        return filtered()


def edges() -> NDArray[np.int64]:
    box = RangeBox.surrounding(40, 50)
    return deepcrf_ext.EdgeGraph.from_range_box(40, 50, box).row_offsets.numpy()


WORK: dict[str, Callable[[], NDArray]] = {
    function.__name__: function
    for function in (drop_in, dense, learnt_dense, filtered, filtered_on_two_threads, edges)
}
CALLS = [*WORK, *(f"{name} {kind}" for name in OPERATORS for kind in (FACTORED, TABLE))]


def call(name: str) -> list[NDArray]:
    """The work of a name; of an operator of the tests with its gradients."""
    if name in WORK:
        return [WORK[name]()]
    operator, kind = name.split()
    problem = grid_problem(9, 11, kind, 5, 24)
    results = value_and_gradients(operator, deepcrf_ext, problem)
    return [result.numpy() for result in results.values()]


def call_in_a_fork(name: str) -> list[NDArray]:
    """`call` in a child of this process, as a worker that starts a pool does."""
    with torch_threads(2):
        torch.ones(1_000_000).exp()
        parents, childs = multiprocessing.get_context("fork").Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=lambda: childs.send(call(name)), daemon=True
        )
        child.start()
        assert parents.poll(TIMEOUT)
        return parents.recv()


def num_threads(_: object) -> int:
    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def parallel_parent() -> Iterator[None]:
    """A parent whose two threads wait for their next loop, of torch's and of the kernels'."""
    with torch_threads(2):
        torch.ones(1_000_000).exp()
        filtered()
        yield


@pytest.fixture
def wanted() -> dict[str, list[NDArray]]:
    return {name: call(name) for name in CALLS}


def check(pool: Pool, function: Callable[[str], list[NDArray]], wanted: dict) -> None:
    with pool:
        results = pool.map_async(function, wanted, chunksize=1).get(TIMEOUT)
    for name, arrays in zip(wanted, results, strict=True):
        for result, right in zip(arrays, wanted[name], strict=True):
            np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-5, err_msg=name)


def test_forked_workers(wanted: dict[str, list[NDArray]]) -> None:
    check(multiprocessing.get_context("fork").Pool(2), call, wanted)
    check(multiprocessing.get_context("fork").Pool(1), call, wanted)  # and once more, after loops


def test_spawned_workers() -> None:
    names = ["drop_in", f"mean_field {FACTORED}"]
    check(multiprocessing.get_context("spawn").Pool(1), call, {name: call(name) for name in names})


def test_threads(wanted: dict[str, list[NDArray]]) -> None:
    check(ThreadPool(4), call, wanted)


def test_forks_of_threads(wanted: dict[str, list[NDArray]]) -> None:
    names = ["drop_in", "learnt_dense", "filtered_on_two_threads"]
    check(ThreadPool(2), call_in_a_fork, {name: wanted[name] for name in names})


def test_forks_of_forks(wanted: dict[str, list[NDArray]]) -> None:
    parents, childs = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: childs.send(call_in_a_fork("drop_in"))
    )
    child.start()
    try:
        assert parents.poll(TIMEOUT)
        np.testing.assert_allclose(parents.recv()[0], wanted["drop_in"][0], atol=1e-5)
    finally:
        child.kill()


class Calls(torch.utils.data.Dataset):
    """A data set that refines what it reads, in the workers of a loader."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        return drop_in()


def test_workers_of_a_loader(wanted: dict[str, list[NDArray]]) -> None:
    loader = DataLoader(Calls(), num_workers=2, timeout=TIMEOUT, multiprocessing_context="fork")
    for batch in loader:
        np.testing.assert_allclose(batch[0], wanted["drop_in"][0], atol=1e-5)


def test_a_child_works_on_one_thread_and_the_parent_on_its_own() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(num_threads, [None]) == [1]
    assert torch.get_num_threads() == 2
