"""What is kept on a device for later calls: bounds, threads, forks, streams and captured graphs."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch

from deepcrf_ext import DenseCRFLattices, DenseCRFParams, EdgeGraph, RangeBox, dense_crf
from deepcrf_ext.ops import _device_cache
from deepcrf_ext.ops._device_cache import DeviceCache
from deepcrf_ext.ops._flat_tensors import graph_tensors

BOX = RangeBox(-1, 1, -1, 1)
GPU = torch.device("cuda", 0)


def graph_cache(max_bytes: int) -> DeviceCache[EdgeGraph]:
    return DeviceCache(max_bytes, graph_tensors)


def nbytes(graph: EdgeGraph) -> int:
    return sum(tensor.nbytes for tensor in graph_tensors(graph))


def test_cache_is_bounded_by_bytes() -> None:
    graphs = [EdgeGraph.from_range_box(4, 5, BOX) for _ in range(4)]
    size = nbytes(graphs[0])
    assert size == 2 * 8 * 21 + (4 + 4 + 8 + 4) * graphs[0].num_edges
    cache = graph_cache(2 * size)
    cache.put(0, graphs[0])
    cache.put(1, graphs[1])
    assert cache.get(0) is graphs[0]  # now 1 is the one unused longest
    cache.put(2, graphs[2])
    assert [cache.get(key) for key in range(3)] == [graphs[0], None, graphs[2]]
    assert (len(cache), cache.num_bytes) == (2, 2 * size)


def test_a_graph_above_the_bound_is_kept_alone() -> None:
    small, large = (EdgeGraph.from_range_box(n, n, BOX) for n in (2, 9))
    cache = graph_cache(nbytes(small))
    cache.put("small", small)
    cache.put("large", large)
    assert cache.get("small") is None
    assert cache.get("large") is large
    cache.put("small", small)
    assert cache.get("large") is None
    assert cache.num_bytes == nbytes(small)


@pytest.mark.parametrize(
    ("value", "tensors"),
    [
        (EdgeGraph.from_edges(torch.tensor([0, 1]), torch.tensor([1, 1]), 3), graph_tensors),
        (
            DenseCRFLattices.build(torch.rand(1, 3, 8, 9), DenseCRFParams(bilateral_srgb=0.1)),
            lambda lattices: [t for each in (lattices.gaussian, *lattices.bilateral)
                              for t in each.kept_tensors()],
        ),
    ],
    ids=["graph", "lattices"],
)  # fmt: skip
def test_what_is_sent_to_another_process_stays_where_it_is(value: Any, tensors: Any) -> None:
    """A worker of a `DataLoader` computes while a thread of its own moves what it sends into
    memory that processes share: what later calls read must not be among it."""
    sent = ForkingPickler.dumps(value)
    assert not any(tensor.is_shared() for tensor in tensors(value))
    received = pickle.loads(sent)
    for own, other in zip(tensors(value), tensors(received), strict=True):
        assert torch.equal(own, other)
    assert any(tensor.is_shared() for tensor in tensors(received))  # a graph makes the rest anew


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_a_thread_holds_the_cache_can_use_it() -> None:
    """The fork waits for the other threads' calls, so that the child's lock is free."""
    cache = graph_cache(1 << 20)
    cache.put(0, EdgeGraph.from_range_box(3, 3, BOX))
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            cache.get(0)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if cache.get(0) is not None else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_the_call_of_another_thread() -> None:
    """A child must not find the cache half changed."""
    inside, leave = threading.Event(), threading.Event()

    def tensors_of(graph: EdgeGraph) -> list[Any]:
        inside.set()
        assert leave.wait(20)
        return []

    cache = DeviceCache(1 << 20, tensors_of)
    thread = threading.Thread(target=cache.put, args=(0, EdgeGraph.from_range_box(3, 3, BOX)))
    thread.start()
    assert inside.wait(20)
    threading.Timer(0.1, leave.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if leave.is_set() and len(cache) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """CUDA as far as the cache looks at it, on a machine without: `current` is the stream of the
    calls, `capturing` whether it captures a graph."""
    state = SimpleNamespace(current=Mock(name="first"), capturing=False)
    cuda = SimpleNamespace(
        device=lambda device: patch.object(state, "device", device, create=True),
        is_current_stream_capturing=lambda: state.capturing,
        current_stream=lambda device: state.current,
    )
    monkeypatch.setattr(_device_cache, "torch", SimpleNamespace(**{**vars(torch), "cuda": cuda}))
    return state


def device_tensor() -> Any:
    return Mock(device=GPU, is_cuda=True, nbytes=8)


def test_a_value_is_whole_before_another_stream_reads_it(streams: SimpleNamespace) -> None:
    cache: DeviceCache[Any] = DeviceCache(100, lambda value: [value])
    value = device_tensor()
    assert cache.get_or_build("key", GPU, lambda: value) is value
    streams.current.synchronize.assert_called_once_with()
    streams.current = other = Mock(name="other")
    assert cache.get_or_build("key", GPU, device_tensor) is value
    other.synchronize.assert_not_called()  # nothing to wait for
    value.record_stream.assert_called_once_with(other)  # its memory is not given away too early


def test_a_value_that_a_replay_writes_is_not_kept(streams: SimpleNamespace) -> None:
    cache: DeviceCache[Any] = DeviceCache(100, lambda value: [value])
    streams.capturing = True
    captured, later = device_tensor(), device_tensor()
    assert cache.get_or_build("key", GPU, lambda: captured) is captured
    streams.current.synchronize.assert_not_called()  # it would end the capture
    streams.capturing = False
    assert cache.get_or_build("key", GPU, lambda: later) is later


def test_a_value_that_a_replay_reads_is_never_freed(streams: SimpleNamespace) -> None:
    cache: DeviceCache[Any] = DeviceCache(8, lambda value: [value])
    value = device_tensor()
    cache.put("key", value)
    streams.capturing = True
    for _ in range(3):
        assert cache.get("key") is value
    assert list(cache._captured.values()) == [value]
    cache.put("other", device_tensor())
    assert cache.get("key") is None
    assert list(cache._captured.values()) == [value]


def test_lattices_are_whole_once_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither their norms nor anything else is written later, when another stream may read."""
    image = torch.randint(256, (2, 3, 8, 9), dtype=torch.uint8)
    waited = Mock()
    monkeypatch.setattr("deepcrf_ext.ops.dense_crf_lattices.wait_until_written", waited)
    lattices = DenseCRFLattices.build(image, DenseCRFParams())
    waited.assert_called_once_with(image.device)
    for lattice in (lattices.gaussian, *lattices.bilateral):
        kept = lattice.kept_tensors()
        assert lattice.norms(torch.float32) is kept[-1]
        assert len(kept) == len(lattice.tensors) + 1
    before = [list(lattice.kept_tensors()) for lattice in (lattices.gaussian, *lattices.bilateral)]
    for dtype in (torch.float32, torch.float64):
        dense_crf(torch.rand(2, 4, 8, 9, dtype=dtype), image, iterations=1, lattices=lattices)
    after = [list(lattice.kept_tensors()) for lattice in (lattices.gaussian, *lattices.bilateral)]
    for was, now in zip(before, after, strict=True):
        assert all(a is b for a, b in zip(was, now, strict=True))


def test_images_of_a_size_share_the_lattice_of_positions() -> None:
    def gaussian(height: int, width: float) -> object:
        image = torch.randint(256, (1, 3, height, 7), dtype=torch.uint8)
        return DenseCRFLattices.build(image, DenseCRFParams(gaussian_sxy=width)).gaussian

    first = gaussian(6, 3.0)
    assert gaussian(6, 3.0) is first
    assert gaussian(6, 2.0) is not first
    assert gaussian(7, 3.0) is not first
