"""The shim itself: it runs correct kernels to the right results, and catches planted faults."""

from __future__ import annotations

import pytest
import torch
from cuda_on_host.host_module import CheckedModule, OrderDependence, load
from torch import Tensor

# Planted fault -> what the shim says of it.
FAULTS = {
    "missing_barrier": "nothing written yet: read of 4 bytes at static shared memory",
    "missing_second_barrier": "race: read of 4 bytes at static shared memory, written by thread",
    "missing_warp_barrier": "nothing written yet: read of 4 bytes at static shared memory",
    "race_between_blocks": "race: write of 4 bytes at argument 3 .*written by another block",
    "wrong_index": r"read of 4 bytes at 0 bytes past the end of argument 2 \(float32\[512\]\)",
    "wrong_store": "out of bounds: write of 4 bytes at 4 bytes before argument 3",
    "wrong_shared_index": "out of bounds: array index 128",
    "dynamic_shared_too_small": "write of 4 bytes at dynamic shared memory, byte 512 of 512",
    "early_exit_before_barrier": r"wait for each other.*, but thread \(125,0,0\) has exited",
    "divergent_barrier": "meet in different barriers",
    "unwritten_shared": r"thread \(77,0,0\): nothing written yet",
    "misaligned_vector": "misaligned access",
    "wrong_shuffle_mask": "lanes of one mask disagree: .* has exited",
    "mask_without_caller": "leaves out the calling lane 31",
    "disagreeing_masks": "lanes of one mask disagree",
    "missing_copy_wait": "asynchronous copy under way",
    "overflowing_index": "signed overflow",
    "shift_by_all_bits": "shift by more bits than there are",
    "integer_too_small": "conversion to an integer that cannot hold the value",
    "order_of_atomics": "differs between the thread orders",
    "missing_wait_for_former_kernels": "former kernels may still run: read of 4 bytes",
    "early_exit_before_the_wait": "ended without having waited for former kernels",
    "unrounded_operand": "an operand is not rounded to TensorFloat32",
    "product_without_a_lane": "lanes of one mask disagree: .* has exited",
}


@pytest.fixture(scope="module")
def kernels() -> CheckedModule:
    return load("kernels_on_host")


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAULTS)
def test_catches_fault(kernels: CheckedModule, name: str) -> None:
    with pytest.raises((RuntimeError, OrderDependence), match=FAULTS[name]) as caught:
        kernels.fault(name, False, randn(512), torch.zeros(512))
    if not isinstance(caught.value, OrderDependence):
        for part in (name, "block (", "tests/cuda_on_host/faults.cu:"):
            assert part in str(caught.value)


@pytest.mark.parametrize("name", FAULTS)
def test_passes_corrected_twin(kernels: CheckedModule, name: str) -> None:
    output = torch.zeros(512)
    kernels.fault(name, True, randn(512), output)
    assert output.any()


def test_runs_on_after_a_fault(kernels: CheckedModule) -> None:
    with pytest.raises(RuntimeError):
        kernels.fault("divergent_barrier", False, randn(128), torch.zeros(128))
    rows, sums = randn(3, 50), torch.empty(3)
    kernels.block_sum(rows, sums)
    torch.testing.assert_close(sums, rows.sum(1))


@pytest.mark.parametrize("shape", [(1, 1), (5, 31), (133, 33), (300, 200)])
def test_shuffles(kernels: CheckedModule, shape: tuple[int, int]) -> None:
    rows, output = randn(*shape), torch.empty(shape)
    kernels.softmax(rows, output)
    torch.testing.assert_close(output, rows.softmax(1))


@pytest.mark.parametrize("shape", [(1, 1), (7, 129), (50, 300)])
def test_shared_memory(kernels: CheckedModule, shape: tuple[int, int]) -> None:
    rows, sums = randn(*shape), torch.empty(shape[0])
    kernels.block_sum(rows, sums)
    torch.testing.assert_close(sums, rows.sum(1))


@pytest.mark.parametrize(("m", "n", "k"), [(8, 8, 8), (1, 64, 32), (77, 72, 104), (130, 200, 256)])
def test_matrix_product(kernels: CheckedModule, m: int, n: int, k: int) -> None:
    a, b, c = randn(m, k).bfloat16(), randn(k, n).bfloat16(), torch.empty(m, n)
    kernels.matmul(a, b, c)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


def rounded_to_tf32(values: Tensor) -> Tensor:
    """The nearest with 10 bits of mantissa, ties away from zero."""
    mantissa, exponent = values.double().frexp()
    scaled = mantissa.abs() * 2**11 + 0.5
    return (mantissa.sign() * scaled.floor() / 2**11).ldexp(exponent)


def test_tf32_product(kernels: CheckedModule) -> None:
    a, b, c = randn(16, 8), randn(8, 8), torch.empty(16, 8)
    a[:, 0] = 1 + torch.arange(16) / 2**12  # ties among them
    b[0, 1], b[0, 2] = -1 - 3 / 2**11, 0.0
    kernels.tf32_product(a, b, c)
    wanted = rounded_to_tf32(a) @ rounded_to_tf32(b)
    torch.testing.assert_close(c.double(), wanted, rtol=1e-6, atol=1e-6)
    assert float((c - a @ b).abs().max()) > 1e-4


def test_products_are_cut_as_tensor_cores_cut_them(kernels: CheckedModule) -> None:
    """Toward zero, where a float32 would round: sums of terms of one sign come out too small."""
    depth = 8
    a, b, c = torch.zeros(16, depth), torch.zeros(depth, 8), torch.empty(16, 8)
    a[:, 0] = b[0] = 1.0  # 1, and three quarters of its last bit
    a[:, 1], b[1] = 0.75, 2.0**-23
    kernels.tf32_product(a, b, c)
    assert (c == 1.0).all()
    kernels.tf32_product(-a, b, c)
    assert (c == -1.0).all()


def test_fence_between_blocks(kernels: CheckedModule) -> None:
    values = torch.arange(1000, dtype=torch.int32)
    partial, counter, total = torch.empty(7).int(), torch.zeros(1).int(), torch.zeros(1).int()
    kernels.last_block_sum(values, partial, counter, total)
    assert total.item() == values.sum()


def test_votes(kernels: CheckedModule) -> None:
    values = torch.randint(-3, 4, (64,), generator=torch.Generator().manual_seed(0)).int()
    same, ranks = torch.empty(64).int(), torch.empty(64).int()
    kernels.vote(values, same, ranks)
    for i in range(64):
        warp = values[i // 32 * 32 : i // 32 * 32 + 32]
        lanes = sum(1 << lane for lane in range(32) if warp[lane] == values[i])
        assert same[i].item() & 0xFFFFFFFF == lanes
        assert ranks[i] == (warp[: i % 32] > 0).sum()
