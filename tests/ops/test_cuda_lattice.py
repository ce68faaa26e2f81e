"""What only the CUDA kernels of the lattice and the dense CRF have: their own arrays, tiles of
corners, launches of several lattices."""

from __future__ import annotations

import pytest
import torch
from accuracy import assert_close
from dense_problems import scene
from targets import Target
from torch import Tensor

from deepcrf_ext import DenseCRFParams, PermutohedralLattice, dense_crf, reference
from deepcrf_ext.ops.dense_crf import DenseKernel, dense_mean_field
from deepcrf_ext.ops.permutohedral_filter import permutohedral_lattice
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
    assert num_points.item() == count
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
