"""What only the CUDA kernels of the lattice and the dense CRF have: their own arrays, tiles of
corners, launches of several lattices."""

from __future__ import annotations

import pytest
import torch
from accuracy import assert_close
from cuda_on_host.host_module import cuda_on_host
from dense_problems import scene
from targets import Target
from torch import Tensor

from deepcrf_ext import DenseCRFParams, PermutohedralLattice, dense_crf, reference
from deepcrf_ext.ops import permutohedral_filter
from deepcrf_ext.ops.dense_crf import DenseKernel, dense_mean_field
from deepcrf_ext.ops.dense_crf_lattices import bilateral_features, gaussian_features
from deepcrf_ext.ops.permutohedral_filter import (
    _cuda_arrays,
    _cuda_neighbours,
    permutohedral_lattice,
)
from deepcrf_ext.reference.permutohedral_filter import PermutohedralLattice as ReferenceLattice


def points(num_values: int, num_dims: int, seed: int = 0) -> Tensor:
    """Features [N, d] of which some are equal and some lie on borders of simplices."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_values, num_dims, generator=generator)
    features[num_values // 2 :] = features[: num_values - num_values // 2].round()
    return features


# Dimensions with and without registers of their own; corners in one tile of the sort and in more.
@pytest.mark.parametrize(("num_values", "num_dims"), [(1, 1), (90, 2), (400, 5), (60, 7), (12, 40)])
def test_lattice_is_that_of_the_reference(
    cuda_target: Target, num_values: int, num_dims: int
) -> None:
    features = points(num_values, num_dims)
    wanted = ReferenceLattice(features)
    planes = features.t().contiguous().to(cuda_target.device)
    arrays = [array.cpu() for array in permutohedral_lattice(planes)]
    num_points, vertices, weights, splat_points, splat_positions, splat_weights, neighbours = arrays
    count = wanted.num_points
    assert num_points.item() == neighbours.shape[1] == count
    assert torch.equal(weights, wanted.weights)

    # Points are numbered in the order in which their first corners come.
    corners = vertices.flatten().long()
    number = torch.empty(count + 1, dtype=torch.int64)  # of the reference's points
    number[wanted.vertices.flatten()] = corners
    number[count] = -1
    assert torch.equal(number[wanted.vertices].int(), vertices)
    highest = torch.cat([corners.new_tensor([-1]), corners.cummax(0).values])
    assert ((corners <= highest[:-1]) | (corners == highest[:-1] + 1)).all()

    ordered = corners.argsort(stable=True)
    assert torch.equal(splat_points.long(), corners[ordered])
    assert torch.equal(splat_positions.long(), ordered // (num_dims + 1))
    assert torch.equal(splat_weights, weights.flatten()[ordered])
    for axis, sides in enumerate(wanted.neighbours):
        for side, neighbour in enumerate(sides):
            row = torch.empty(count, dtype=torch.int64)
            row[number[:-1]] = number[neighbour]
            assert torch.equal(neighbours[axis, :count, side].long(), row)


def test_a_lattice_built_while_capturing_has_room_for_a_point_a_corner(
    cuda_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of points cannot be read then, and differs from replay to replay."""
    features = points(50, 3).to(cuda_target.device)
    values = torch.rand(50, 5, generator=torch.Generator().manual_seed(3)).to(cuda_target.device)
    eager = PermutohedralLattice(features)
    monkeypatch.setattr(permutohedral_filter, "is_capturing", lambda device: True)
    captured = PermutohedralLattice(features)
    assert captured.tensors[-1].shape == (4, 50 * 4, 2)
    count = eager.tensors[-1].shape[1]
    assert count < 50 * 4
    assert torch.equal(captured.tensors[-1][:, :count], eager.tensors[-1])
    assert (captured.tensors[-1][:, count:] == -1).all()
    assert torch.equal(captured.filter(values), eager.filter(values))


class Counted(Exception):
    """Ends a call once it has asked for its scratch memory."""


def test_memory_by_cuda_on_host_is_in_proportion_to_the_lattice_points() -> None:
    """Counted at 500×375 with 21 labels. Nothing grows faster than the pixels, of which 4000×3000
    has 64 times as many. The number of points is that of the CPU's lattices."""
    unary, image = scene(375, 500, 21)
    params = DenseCRFParams()
    both = [
        gaussian_features(image.shape[2:], params.gaussian_sxy, image.device),
        bilateral_features(image[0], params.bilateral_sxy, params.bilateral_srgb),
    ]
    counts = [permutohedral_lattice(planes)[-1].shape[1] for planes in both]
    energies = unary[0].flatten(1)
    scale = torch.ones(energies.shape[1])
    with cuda_on_host() as native:
        lattices = [
            [*_cuda_arrays(planes), _cuda_neighbours(planes, count)]
            for planes, count in zip(both, counts, strict=True)
        ]
        kernels = [(tuple(lattice), scale, scale, torch.eye(21)) for lattice in lattices]
        filtering = 0

        def allocate(size: int) -> Tensor:
            nonlocal filtering
            filtering = size
            raise Counted

        with pytest.raises(Counted):
            native.dense_crf(kernels, energies, 10, energies, False, allocate, 1, 0)
        building = native.permutohedral_lattice_workspace(both[1]) + both[1].nbytes
    kept = sum(array.nbytes for lattice in lattices for array in lattice)
    for scratch in (filtering, building):
        assert kept + scratch <= 100e6
        assert 64 * (kept + scratch) <= 6e9


# Points whose corners fill many tiles: up to four heads a group at a time, and the rest.
@pytest.mark.parametrize(("num_values", "num_channels"), [(4500, 1), (700, 20), (300, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_points_over_many_tiles(
    cuda_target: Target, num_values: int, num_channels: int, dtype: torch.dtype
) -> None:
    features = torch.zeros(num_values, 1)
    features[: num_values // 10] = 40.0
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(num_values, num_channels, dtype=dtype, generator=generator)
    lattice = PermutohedralLattice(features.to(cuda_target.device))
    result = lattice.filter(values.to(cuda_target.device)).cpu()
    assert_close(result, reference.permutohedral_filter(values.double(), features).to(dtype))


def test_more_kernels_than_a_launch_takes(cuda_target: Target) -> None:
    unary, image = scene(5, 6, 3, cuda_target.device)
    energies = unary[0].flatten(1)
    colours = image[0].flatten(1).float()
    kernels = [
        DenseKernel.normalised(
            PermutohedralLattice.from_planes(colours[: 1 + i % 3] / (10 + i)), weight
        )
        for i, weight in enumerate(torch.rand(9, 3, 3, generator=torch.Generator().manual_seed(2)))
        for weight in [weight.to(energies)]
    ]
    fused = dense_mean_field(energies, kernels, 2)
    unrolled = dense_mean_field(energies.clone().requires_grad_(), kernels, 2)
    assert_close(fused, unrolled.detach())


def test_a_diagonal_compatibility_is_its_matrix(cuda_target: Target) -> None:
    unary, image = scene(5, 6, 3, cuda_target.device)
    lattice = PermutohedralLattice.from_planes(image[0].flatten(1).float() / 20)
    diagonal = torch.tensor([-1.0, 0.5, -2.0], device=cuda_target.device)
    results = [
        dense_mean_field(unary[0].flatten(1), [DenseKernel.normalised(lattice, compatibility)], 3)
        for compatibility in (diagonal, diagonal.diag())
    ]
    assert_close(*results)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e9])
def test_features_that_cannot_be_placed_give_nan(cuda_target: Target, bad: float) -> None:
    features = points(30, 3) + 100
    features[3, 1] = bad
    features = features.to(cuda_target.device)
    result = PermutohedralLattice(features).filter(torch.ones_like(features[:, :2]))
    assert result[3].isnan().all()
    assert result[[2, 4]].isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_energies_without_a_softmax_give_nan(cuda_target: Target, bad: float) -> None:
    unary, image = scene(4, 5, 3, cuda_target.device)
    unary[0, 1, 2, 3] = bad
    narrow = DenseCRFParams(0.05, 1.0, 0.05, 0.05, 1.0)
    result = dense_crf(unary, image, narrow, 2)
    wanted = torch.zeros(4, 5, dtype=torch.bool)
    wanted[2, 3] = True
    for marginals in result[0].cpu():
        assert torch.equal(marginals.isnan(), wanted)
