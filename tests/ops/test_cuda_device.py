"""What only a GPU can show: streams, graphs, a second device, and sizes past 2³¹ elements."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accuracy import assert_close
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
from torch import Tensor

import deepcrf_ext as dc
from deepcrf_ext import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda", 0)
DELAY = 200_000_000  # clock cycles, about a tenth of a second


def need_memory(gib: int) -> None:
    """Skip a test where the GPU has less free memory."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(GPU)
    if free < gib << 30:
        pytest.skip(f"needs {gib} GiB of free memory, has {free / 2**30:.1f}")


every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_kind = pytest.mark.parametrize("kind", [FACTORED, TABLE])


def device_problem(kind: str, device: torch.device = GPU) -> Problem:
    return grid_problem(9, 11, kind, 6, 40).to(device, torch.float32)


def gradients_of(operator: str, problem: Problem) -> Callable[[], list[Tensor]]:
    """The operator with its gradients, as a function of what the problem's tensors hold then."""
    leaves = {
        name: problem.tensors[name].requires_grad_() for name in used_tensors(operator, problem)
    }

    def run() -> list[Tensor]:
        value = OPERATORS[operator](dc, problem.with_tensors(leaves))
        return [value, *torch.autograd.grad(value.square().sum(), list(leaves.values()))]

    return run


@every_operator
@every_kind
def test_work_waits_for_what_its_stream_did_before(operator: str, kind: str) -> None:
    problem = device_problem(kind)
    wanted = [value.clone() for value in gradients_of(operator, problem)()]
    late = problem.map(torch.zeros_like)
    stream = torch.cuda.Stream(GPU)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY)
        for name, value in late.tensors.items():
            value.copy_(problem.tensors[name])
        results = gradients_of(operator, late)()
    stream.synchronize()
    for result, value in zip(results, wanted, strict=True):
        assert torch.equal(result, value)


@every_operator
@every_kind
def test_host_never_waits_for_the_device(operator: str, kind: str) -> None:
    run = gradients_of(operator, device_problem(kind))
    run()
    former = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(DELAY)
        run()
        still_asleep = not torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode(former)
    assert still_asleep


@every_operator
@every_kind
def test_captured_graph_sees_new_values(operator: str, kind: str) -> None:
    problem = device_problem(kind)
    other = problem.map(lambda value: value.flip(0).contiguous())
    wanted = [value.clone() for value in gradients_of(operator, other)()]
    other = other.map(lambda value: value.detach().clone())
    run = gradients_of(operator, problem)
    side = torch.cuda.Stream(GPU)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = run()
    with torch.no_grad():
        for name, value in problem.tensors.items():
            value.copy_(other.tensors[name])
    captured.replay()
    torch.cuda.synchronize()
    for result, value in zip(results, wanted, strict=True):
        assert torch.equal(result, value)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_operator
@every_kind
def test_second_device_while_the_first_is_current(operator: str, kind: str) -> None:
    problem = device_problem(kind)
    wanted = value_and_gradients(operator, dc, problem)
    second = torch.device("cuda", 1)
    results = value_and_gradients(operator, dc, problem.to(second, torch.float32))
    assert torch.cuda.current_device() == 0
    for name, value in results.items():
        assert value.device == second
        assert_close(value.cpu(), wanted[name].cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_no_context_on_a_device_without_tensors() -> None:
    """Making an idle device current again would take half a gigabyte of it (pytorch#94864)."""
    program = """
import torch, deepcrf_ext as dc
graph = dc.EdgeGraph.from_range_box(4, 4, dc.RangeBox(-1, 1, -1, 1), "cuda:1")
random = lambda *shape: torch.rand(shape, device="cuda:1")
potential = dc.FactoredPotential(
    graph, random(16, 8), random(16, 8), random(3, 3, 8), random(3, 3)
)
dc.mean_field(random(16, 3), [potential])
assert not torch._C._cuda_hasPrimaryContext(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_with_other_sizes(dtype: torch.dtype) -> None:
    """Each launch is of its own size, whatever another thread launches at the same time."""
    problems = [
        make_problem([random_graph(20, 60, labels)], [FACTORED], labels, dim).to(GPU, dtype)
        for labels, dim in ((8, 64), (24, 512))
    ]

    def call(problem: Problem, repeats: int = 2000) -> tuple[Tensor, Tensor]:
        for _ in range(repeats):
            marginals = dc.mean_field(problem.tensors["unary"], problem.potentials, 1)
            loss = dc.pairwise_nll(problem.potentials[0], problem.labels)
        torch.cuda.synchronize(GPU)
        return marginals, loss

    wanted = [call(problem, 1) for problem in problems]
    with ThreadPoolExecutor(2) as pool:
        for results, alone in zip(pool.map(call, problems), wanted, strict=True):
            assert all(map(torch.equal, results, alone))


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_loss_under_torchs_flags(reduced: bool, precision: str) -> None:
    """Half-precision sums stay whole, whatever torch's own products may do."""
    matmul = torch.backends.cuda.matmul
    former = torch.get_float32_matmul_precision()
    former_reduced = matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision(precision)
    matmul.allow_bf16_reduced_precision_reduction = reduced
    try:
        problem = grid_problem(9, 11, FACTORED, 6, 512).to(GPU, torch.bfloat16)
        results = value_and_gradients("pairwise_nll_mean", dc, problem)
        exact = value_and_gradients(
            "pairwise_nll_mean", reference, problem.to(torch.device("cpu"), torch.float64)
        )
        for name, value in results.items():
            assert_close(value.cpu(), exact[name])
        assert matmul.allow_bf16_reduced_precision_reduction is reduced
    finally:
        torch.set_float32_matmul_precision(former)
        matmul.allow_bf16_reduced_precision_reduction = former_reduced


@pytest.mark.parametrize("label", [3, 255])
def test_a_label_that_is_none_is_asserted_on_the_device(label: int) -> None:
    """As by torch's cross-entropy, which no later call of the process survives."""
    program = f"""
import torch, deepcrf_ext as dc
graph = dc.EdgeGraph.from_range_box(4, 4, dc.RangeBox(-1, 1, -1, 1), "cuda")
table = dc.TablePotential(graph, torch.rand(graph.num_edges, 3, 3, device="cuda"))
labels = torch.zeros(16, dtype=torch.int64, device="cuda")
labels[5] = {label}
dc.pairwise_nll(table, labels, ignore_index=255)
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode == 0) == (label == 255), done.stderr
    assert ("device-side assert" in done.stderr) == (label != 255)


def test_a_loss_is_few_kernels() -> None:
    """Each takes a microsecond or two, more than its work on a small graph."""
    problem = device_problem(FACTORED)
    leaves = [problem.tensors[f"{name}0"] for name in ("source", "target", "weight", "bias")]
    for leaf in leaves:
        leaf.requires_grad_()

    def run() -> None:
        torch.autograd.grad(dc.pairwise_nll(problem.potentials[0], problem.labels), leaves)

    run()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    if not kernels:
        pytest.skip("the profiler sees no kernels here")
    assert len(kernels) <= 19, "\n".join(kernels)


def test_range_box_past_two_to_the_31_edges_on_the_device() -> None:
    need_memory(48)
    side = 220
    graph = dc.EdgeGraph.from_range_box(side, side, dc.RangeBox(-side, side, -side, side), GPU)
    num_nodes = side * side
    assert graph.num_edges == num_nodes * (num_nodes - 1) > 2**31
    last = graph.targets[graph.row_offsets[-2] :]
    assert torch.equal(last.long(), torch.arange(num_nodes - 1, device=GPU))


def edge_slices(graph: dc.EdgeGraph, size: int) -> Iterator[tuple[slice, dc.EdgeGraph]]:
    """The graph in parts of `size` edges, each a graph over all nodes."""
    first, second = graph.edge_index()
    for start in range(0, graph.num_edges, size):
        part = slice(start, min(start + size, graph.num_edges))
        yield part, dc.EdgeGraph.from_edges(first[part], second[part], graph.num_nodes)


@pytest.mark.parametrize("kind", [FACTORED, TABLE])
def test_loss_past_two_to_the_31_energies(kind: str) -> None:
    need_memory(24)
    num_labels, num_edges = 150, 100_000
    assert num_edges * num_labels**2 > 2**31
    graph = random_graph(500, num_edges, 0).to(GPU)
    small = make_problem([random_graph(500, 1, 0)], [FACTORED], num_labels, 16)
    small = small.to(GPU, torch.float32)
    leaves = [small.tensors[f"{name}0"].requires_grad_() for name in ("source", "target", "bias")]
    weight = small.tensors["weight0"]

    def potential(part: dc.EdgeGraph) -> dc.FactoredPotential:
        return dc.FactoredPotential(part, leaves[0], leaves[1], weight, leaves[2])

    whole = potential(graph)
    if kind == TABLE:
        with torch.no_grad():
            table = torch.cat([potential(p).energies() for _, p in edge_slices(graph, 10_000)])
        losses = dc.pairwise_nll(dc.TablePotential(graph, table), small.labels, reduction="none")
        gradients = None
    else:
        losses = dc.pairwise_nll(whole, small.labels, reduction="none")
        total = dc.pairwise_nll(whole, small.labels, reduction="sum")
        gradients = torch.autograd.grad(total, leaves)

    expected = [torch.zeros_like(leaf) for leaf in leaves]
    for edges, part in edge_slices(graph, 10_000):
        wanted = reference.pairwise_nll(potential(part), small.labels, reduction="none")
        assert_close(losses[edges], wanted)
        for sums, term in zip(expected, torch.autograd.grad(wanted.sum(), leaves), strict=True):
            sums += term
    if gradients is not None:
        for gradient, sums in zip(gradients, expected, strict=True):
            assert_close(gradient, sums)


def test_messages_past_two_to_the_31_hidden_values() -> None:
    need_memory(12)
    num_edges, dim = 4_500_000, 512
    assert num_edges * dim > 2**31
    graph = random_graph(2000, num_edges, 1).to(GPU)
    small = make_problem([random_graph(2000, 1, 0)], [FACTORED], 3, dim).to(GPU, torch.float32)
    names = ("source0", "target0", "weight0", "bias0")
    tensors = [small.tensors[name] for name in names]
    marginals = small.tensors["marginals"]
    messages = dc.pairwise_messages(dc.FactoredPotential(graph, *tensors), marginals)
    exact = torch.zeros_like(messages, dtype=torch.float64)
    for _, part in edge_slices(graph, 500_000):
        exact += reference.pairwise_messages(dc.FactoredPotential(part, *tensors), marginals)
    assert_close(messages, exact.float())
