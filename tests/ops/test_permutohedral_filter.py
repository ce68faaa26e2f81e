"""The Gaussian filter on the permutohedral lattice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import TOLERANCE, assert_close
from dense_problems import every_target
from hypothesis import given
from hypothesis import strategies as st
from registered import opcheck
from targets import Target
from threads import torch_threads
from torch import Tensor

import deepcrf_ext
from deepcrf_ext import PermutohedralLattice, permutohedral_filter, reference
from deepcrf_ext.ops.permutohedral_filter import permutohedral_apply, permutohedral_lattice

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def cloud(
    num_values: int, num_dims: int, num_channels: int, spread: float = 2.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random values [N, C] in float64 and features [N, d]."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_values, num_channels, generator=generator, dtype=torch.float64)
    return values, spread * torch.randn(num_values, num_dims, generator=generator)


def check_against_reference(
    target: Target, values: Tensor, features: Tensor, dtype: torch.dtype
) -> None:
    rounded = values.to(dtype)
    result = target.functions.permutohedral_filter(
        rounded.to(target.device), features.to(target.device)
    )
    wanted = reference.permutohedral_filter(rounded.double(), features)
    assert result.dtype == dtype
    assert result.shape == values.shape
    error = float((result.cpu().double() - wanted).abs().max())
    assert error <= TOLERANCE[dtype] * max(float(wanted.abs().max()), 1e-2)


# Dimensions with and without a specialisation, keys of one and of several words, channels around
# the widths of vectors, and more positions than a block holds.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_values", "num_dims", "num_channels"),
    [
        (1, 1, 1),
        (33, 1, 4),
        (300, 2, 5),
        (9000, 2, 2),
        (200, 3, 8),
        (400, 4, 9),
        (500, 5, 11),
        (300, 5, 21),
        (100, 6, 32),
        (60, 9, 47),
        (20, 20, 150),
        (9, 25, 1),
    ],
)
def test_accuracy(
    operator_target: Target, num_values: int, num_dims: int, num_channels: int, dtype: torch.dtype
) -> None:
    values, features = cloud(num_values, num_dims, num_channels)
    check_against_reference(operator_target, values, features, dtype)


@given(
    num_values=st.integers(1, 80),
    num_dims=st.integers(1, 7),
    num_channels=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 1000.0]),
    grid=st.booleans(),
)
def test_ragged_clouds(
    operator_target: Target,
    num_values: int,
    num_dims: int,
    num_channels: int,
    spread: float,
    grid: bool,
) -> None:
    values, features = cloud(num_values, num_dims, num_channels, spread)
    # Points on a grid lie on the borders of simplices.
    features = features.round() if grid else features
    check_against_reference(operator_target, values, features, torch.float32)


def test_equal_points_share_their_values() -> None:
    values, _ = cloud(50, 3, 4)
    lattice = PermutohedralLattice(torch.zeros(50, 3))
    average = lattice.filter(values) / lattice.norms(torch.float64)[:, None]
    assert_close(average, values.mean(0).expand(50, 4))


def test_far_points_keep_their_values() -> None:
    values, _ = cloud(20, 2, 3)
    lattice = PermutohedralLattice(1000.0 * torch.arange(20.0)[:, None].expand(20, 2))
    assert_close(lattice.filter(values) / lattice.norms(torch.float64)[:, None], values)


@pytest.mark.parametrize(("num_dims", "limit"), [(1, 0.01), (2, 0.02), (3, 0.03)])
def test_average_is_near_the_exact_one_in_a_volume(num_dims: int, limit: float) -> None:
    """On a dense grid of pixels or voxels, widths of 3: a smooth signal, away from the border."""
    size = {1: 400, 2: 40, 3: 14}[num_dims]
    axes = torch.meshgrid(*[torch.arange(float(size))] * num_dims, indexing="ij")
    features = torch.stack([axis.flatten() for axis in axes], 1) / 3
    values = torch.sin(features.sum(1, keepdim=True, dtype=torch.float64) / 2)
    ones = torch.ones_like(values)
    average = permutohedral_filter(values, features) / permutohedral_filter(ones, features)
    exact = reference.gaussian_filter(values, features) / reference.gaussian_filter(ones, features)
    assert float((average - exact).abs().mean()) < limit


def test_gradients(operator_target: Target) -> None:
    values, features = cloud(9, 3, 2)
    values = values.to(operator_target.device).requires_grad_()
    lattice = PermutohedralLattice(features.to(operator_target.device))
    assert torch.autograd.gradcheck(lattice.filter, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(lattice.filter, values, fast_mode=True)


def test_gradient_is_the_transpose(operator_target: Target) -> None:
    values, features = (tensor.to(operator_target.device) for tensor in cloud(40, 2, 1))
    lattice = PermutohedralLattice(features)
    matrix = lattice.filter(torch.eye(40).to(values))
    upstream = torch.randn_like(values)
    values.requires_grad_()
    (gradient,) = torch.autograd.grad(lattice.filter(values), values, upstream)
    assert_close(gradient, matrix.t() @ upstream)


def feature_gradient(values: Tensor, features: Tensor, upstream: Tensor, function: Any) -> Tensor:
    """The gradient in the features of `upstream` times what `function` filters."""
    leaf = features.clone().requires_grad_()
    return torch.autograd.grad((function(values, leaf) * upstream).sum(), leaf)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


# The slices that bound its memory: one channel, several in one slice, and several slices.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_values", "num_dims", "num_channels"),
    [(1, 1, 1), (60, 1, 5), (40, 2, 21), (50, 5, 20), (20, 60, 2)],
)
def test_feature_gradient_is_that_of_the_reference(
    operator_target: Target, num_values: int, num_dims: int, num_channels: int, dtype: torch.dtype
) -> None:
    values, features = cloud(num_values, num_dims, num_channels, spread=num_dims**-0.5)
    upstream = torch.randn(
        values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    rounded = [tensor.to(dtype) for tensor in (values, upstream)]
    wanted = feature_gradient(
        rounded[0].double(), features.double(), rounded[1].double(), reference.permutohedral_filter
    )
    device = operator_target.device
    result = feature_gradient(
        rounded[0].to(device),
        features.to(device),
        rounded[1].to(device),
        operator_target.functions.permutohedral_filter,
    )
    assert result.dtype == torch.float32
    assert float((result.cpu() - wanted).abs().max()) <= 2e-5 * max(float(wanted.abs().max()), 1e-2)


@pytest.mark.parametrize(
    ("num_dims", "num_values", "spread", "factor"),
    [(1, 80, 0.3, 0.92), (1, 80, 2.0, 0.92), (2, 80, 1.0, 0.87), (2, 200, 2.0, 0.87),
     (3, 200, 0.5, 0.78), (3, 400, 1.0, 0.8), (5, 400, 0.5, 0.6)],
)  # fmt: skip
@pytest.mark.parametrize("num_channels", [1, 6])
def test_feature_gradient_is_near_the_exact_one(
    num_dims: int, num_values: int, spread: float, factor: float, num_channels: int
) -> None:
    """In direction, and in size up to the factor of the filter itself."""
    values, features = cloud(num_values, num_dims, num_channels, spread)
    features = features.double()
    upstream = torch.randn(
        values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    result = feature_gradient(values, features, upstream, permutohedral_filter)
    exact = feature_gradient(values, features, upstream, reference.gaussian_filter)
    assert cosine(result, exact) > 0.95
    assert abs(float(result.norm() / exact.norm()) / factor - 1) < 0.15


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_feature_gradient_is_the_slope_of_the_lattice(num_dims: int) -> None:
    """Points move along the gradient of an average over them; it changes as the gradient says."""
    size = {1: 300, 2: 30, 3: 12}[num_dims]
    axes = torch.meshgrid(*[torch.arange(float(size))] * num_dims, indexing="ij")
    features = torch.stack([axis.flatten() for axis in axes], 1).double() / 3
    values = torch.sin(1.3 * features.sum(1, keepdim=True))
    target = torch.cos(0.9 * features[:, :1])

    def loss(moved: Tensor) -> Tensor:
        ones = torch.ones_like(values)
        average = permutohedral_filter(values, moved) / permutohedral_filter(ones, moved)
        return (average - target).square().mean()

    leaf = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    step = 0.1 * gradient / gradient.abs().max()
    with torch.no_grad():
        change = float(loss(features + step) - loss(features - step)) / 2
    assert change / float((gradient * step).sum()) == pytest.approx(1, abs=0.15)


def test_a_common_shift_changes_nothing(operator_target: Target) -> None:
    """Far from the origin the products of values and features do not drown the differences."""
    values, features = (tensor.to(operator_target.device) for tensor in cloud(60, 2, 3))
    values = values.float()
    upstream = torch.ones_like(values)
    near = feature_gradient(values, features, upstream, permutohedral_filter)
    assert float(near.sum(0).abs().max()) < 1e-4 * float(near.abs().max())
    shift = 40 * 3 * torch.tensor([1.0, 1.0], device=values.device)
    far = feature_gradient(values, features + shift, upstream, permutohedral_filter)
    assert cosine(far.cpu(), near.cpu()) > 0.9


def test_second_derivatives_are_near_the_exact_ones() -> None:
    values, features = cloud(300, 1, 2)
    results = []
    for function in (permutohedral_filter, reference.gaussian_filter):
        leaves = [values.clone().requires_grad_(), features.double().requires_grad_()]
        result = function(*leaves)
        gradients = torch.autograd.grad(result.square().sum(), leaves, create_graph=True)
        total = sum(gradient.square().sum() for gradient in gradients)
        results.append(torch.autograd.grad(total, leaves))
    for lattice, exact in zip(*results, strict=True):
        assert cosine(lattice, exact) > 0.95


def test_features_without_a_gradient_cost_nothing() -> None:
    """Nothing is kept of the values, and no features reach the operator."""
    values, features = cloud(30, 2, 7)
    lattice = PermutohedralLattice(features)
    assert lattice.planes is None
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lattice.filter(values.requires_grad_())
    assert all(tensor.shape != values.shape for tensor in kept)
    with torch.no_grad():
        assert PermutohedralLattice(features.clone().requires_grad_()).planes is None


def test_threads_do_not_change_a_bit() -> None:
    values, features = cloud(20000, 5, 11, spread=3.0)
    values = values.float()
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            results.append(permutohedral_filter(values, features))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_strides_do_not_matter(operator_target: Target) -> None:
    values, features = (tensor.to(operator_target.device) for tensor in cloud(50, 3, 6))
    wanted = permutohedral_filter(values, features)
    assert torch.equal(permutohedral_filter(values.t().contiguous().t(), features), wanted)
    assert torch.equal(permutohedral_filter(values, features.t().contiguous().t()), wanted)


def test_registered_operators_pass_opcheck(operator_target: Target) -> None:
    values, features = (tensor.to(operator_target.device) for tensor in cloud(30, 3, 4))
    planes = features.t().contiguous()
    opcheck(permutohedral_lattice, (planes,))
    lattice = permutohedral_lattice(planes)
    leaves = [planes.clone().requires_grad_(), planes[1:].clone().requires_grad_(), None]
    for dtype in (torch.float32, torch.bfloat16):
        leaf = values.to(dtype).requires_grad_()
        for moving in leaves:
            opcheck(permutohedral_apply, (lattice, leaf, False, moving))
    opcheck(permutohedral_apply, (lattice, values, True, leaves[0]))


def test_compiles_whole(operator_target: Target) -> None:
    values, features = (tensor.to(operator_target.device) for tensor in cloud(30, 3, 4))
    torch.compiler.reset()
    compiled = torch.compile(permutohedral_filter, backend="aot_eager", fullgraph=True)
    assert_close(compiled(values, features), permutohedral_filter(values, features))
    upstream = torch.ones_like(values)
    assert_close(
        feature_gradient(values, features, upstream, compiled),
        feature_gradient(values, features, upstream, permutohedral_filter),
    )


@every_target
def test_errors_name_the_argument(target: Target) -> None:
    function = target.functions.permutohedral_filter
    values, features = (tensor.to(target.device) for tensor in cloud(5, 2, 3))
    with pytest.raises(TypeError, match="features"):
        function(values, features.long())
    with pytest.raises(TypeError, match="values"):
        function(values.long(), features)
    with pytest.raises(ValueError, match="features: got shape"):
        function(values, features[0])
    with pytest.raises(ValueError, match="values: got shape"):
        function(values[:4], features)
    with pytest.raises(ValueError, match="features: got shape"):
        PermutohedralLattice(features[0])
    lattice = PermutohedralLattice(features)
    with pytest.raises(ValueError, match="values: got shape"):
        lattice.filter(values[:4])
    with pytest.raises(TypeError, match="values: got layout torch.sparse_coo, must be a dense"):
        lattice.filter(values.to_sparse())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e9])
def test_features_that_cannot_be_placed(bad: float) -> None:
    values, features = cloud(5, 2, 3)
    features[3, 1] = bad
    with pytest.raises(ValueError, match="features: got"):
        deepcrf_ext.permutohedral_filter(values, features)
