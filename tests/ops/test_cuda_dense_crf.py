"""The dense CRF on a GPU: streams, graphs, memory, a second device."""

from __future__ import annotations

import pytest
import torch
from dense_problems import scene
from torch import Tensor

import deepcrf_ext as dc

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda", 0)
DELAY = 200_000_000  # clock cycles, about a tenth of a second


def dense_results(unary: Tensor, image: Tensor) -> list[Tensor]:
    """Lattices, the fused mean field, and the unrolled one with its gradient."""
    leaf = unary.detach().requires_grad_()
    unrolled = dc.dense_crf(leaf, image, iterations=2)
    (gradient,) = torch.autograd.grad(unrolled.square().sum(), leaf)
    return [dc.dense_crf(unary, image), unrolled.detach(), gradient]


def test_dense_crf_repeats_itself_to_the_bit() -> None:
    unary, image = scene(120, 160, 21, GPU)
    for first, second in zip(*(dense_results(unary, image) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


def test_dense_crf_of_a_photo_is_that_of_the_cpu() -> None:
    unary, image = scene(375, 500, 21)
    result = dc.dense_crf(unary.to(GPU), image.to(GPU)).cpu()
    assert float((result - dc.dense_crf(unary, image)).abs().max()) < 1e-3


def test_dense_crf_waits_for_what_its_stream_did_before() -> None:
    unary, image = scene(60, 80, 5, GPU)
    wanted = dense_results(unary, image)
    late_unary, late_image = torch.zeros_like(unary), torch.zeros_like(image)
    stream = torch.cuda.Stream(GPU)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY)
        late_unary.copy_(unary)
        late_image.copy_(image)
        results = dense_results(late_unary, late_image)
    stream.synchronize()
    for result, value in zip(results, wanted, strict=True):
        assert torch.equal(result, value)


def test_dense_crf_on_built_lattices_never_waits_for_the_device() -> None:
    """Building them waits once a lattice, for the number of its points."""
    unary, image = scene(60, 80, 5, GPU)
    lattices = dc.DenseCRFLattices.build(image, dc.DenseCRFParams())
    dc.dense_crf(unary, image, lattices=lattices)
    former = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(DELAY)
        dc.dense_crf(unary, image, lattices=lattices)
        still_asleep = not torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode(former)
    assert still_asleep


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lattices_built_before_a_capture_serve_calls_before_its_replay(dtype: torch.dtype) -> None:
    """What the capture would write, such as norms, holds nothing until the replay."""
    unary, image = scene(30, 40, 5, GPU)
    unary = unary.to(dtype)
    params = dc.DenseCRFParams()
    wanted = dc.dense_crf(unary, image)
    lattices = dc.DenseCRFLattices.build(image, params)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = dc.dense_crf(unary, image, lattices=lattices)
    assert torch.equal(dc.dense_crf(unary, image, lattices=lattices), wanted)
    captured.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, wanted)


def test_lattices_built_on_one_stream_serve_another() -> None:
    unary, image = scene(30, 40, 5, GPU)
    wanted = dc.dense_crf(unary, image)
    first, second = torch.cuda.Stream(GPU), torch.cuda.Stream(GPU)
    late = torch.zeros_like(image)
    torch.cuda.synchronize()
    with torch.cuda.stream(first):
        torch.cuda._sleep(DELAY)
        late.copy_(image)
        lattices = dc.DenseCRFLattices.build(late, dc.DenseCRFParams())
    with torch.cuda.stream(second):
        result = dc.dense_crf(unary, image, lattices=lattices)
        del lattices  # its memory waits for the second stream
    with torch.cuda.stream(first):
        torch.full((1 << 24,), -1, dtype=torch.int32, device=GPU)
    torch.cuda.synchronize()
    assert torch.equal(result, wanted)


def test_dense_crf_keeps_to_its_memory() -> None:
    unary, image = scene(375, 500, 21, GPU)
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_allocated(GPU)
    dc.dense_crf(unary, image)
    # Beside lattices and scratch: the marginals, and the scratch of a filter of ones.
    assert torch.cuda.max_memory_allocated(GPU) - before - 2 * unary.nbytes < 100e6


def test_captured_dense_crf_sees_a_new_image() -> None:
    unary, image = scene(60, 80, 5, GPU)
    other_unary, other_image = scene(60, 80, 5, GPU, seed=1)
    wanted = dense_results(other_unary, other_image)
    side = torch.cuda.Stream(GPU)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        dense_results(unary, image)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = dense_results(unary, image)
    unary.copy_(other_unary)
    image.copy_(other_image)
    captured.replay()
    torch.cuda.synchronize()
    for result, value in zip(results, wanted, strict=True):
        assert torch.equal(result, value)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_dense_crf_on_a_second_device_while_the_first_is_current() -> None:
    unary, image = scene(30, 40, 5, GPU)
    second = torch.device("cuda", 1)
    for result, wanted in zip(
        dense_results(unary.to(second), image.to(second)), dense_results(unary, image), strict=True
    ):
        assert result.device == second
        assert torch.equal(result.cpu(), wanted.cpu())
