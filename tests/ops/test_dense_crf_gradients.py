"""Gradients of the dense CRF in its image and in the widths of its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from dense_problems import scene, volume
from targets import Target
from torch import Tensor
from torch.nn.functional import nll_loss

from deepcrf_ext import DenseCRFLattices, DenseCRFParams, dense_crf, reference
from deepcrf_ext.ops import permutohedral_filter as filter_module
from deepcrf_ext.ops.dense_crf import dense_crf_log_marginals
from deepcrf_ext.ops.dense_crf_params import Normalisation

SHAPES: list[tuple[tuple[int, ...], int]] = [((200,), 1), ((11, 13), 3), ((4, 7, 6), 1)]


def problem(shape: tuple[int, ...], num_channels: int) -> tuple[Tensor, Tensor]:
    """Energies of three labels in float64, and a float32 image."""
    unary, image = volume(shape, num_channels, 3)
    return unary.double(), image.float()


def widths(values: Sequence[float] = (2.0, 4.0, 40.0)) -> list[Tensor]:
    return [torch.tensor(value, requires_grad=True) for value in values]


def gradients(
    function: Any, unary: Tensor, image: Tensor, learnt: Sequence[Tensor], **options: Any
) -> list[Tensor]:
    """Those of a random weighting of the marginals, in the image and the widths."""
    params = DenseCRFParams(learnt[0], 1.0, learnt[1], learnt[2], 2.0)
    marginals = function(unary, image, params, 2, **options)
    generator = torch.Generator().manual_seed(3)
    upstream = torch.randn(unary.shape, dtype=torch.float64, generator=generator)
    leaves = [leaf for leaf in (image, *learnt) if leaf.requires_grad]
    total = (marginals * upstream.to(marginals)).sum()
    return [gradient.cpu() for gradient in torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize(("shape", "num_channels"), SHAPES)
def test_those_of_the_reference(
    operator_target: Target, shape: tuple[int, ...], num_channels: int
) -> None:
    unary, image = problem(shape, num_channels)
    wanted = gradients(reference.dense_crf, unary, image.clone().requires_grad_(), widths())
    moved = [tensor.detach().to(operator_target.device) for tensor in (unary, image, *widths())]
    unary, image, *learnt = moved
    leaves = [leaf.requires_grad_() for leaf in (image, *learnt)]
    for own, other in zip(gradients(dense_crf, unary, leaves[0], leaves[1:]), wanted, strict=True):
        assert own.dtype == torch.float32
        assert float((own - other).abs().max()) <= 2e-5 * float(other.abs().max())


@pytest.mark.parametrize("normalisation", ["before", "after", "none"])
def test_through_every_normalisation(normalisation: Normalisation) -> None:
    unary, image = problem((9, 11), 3)
    results = []
    for function in (dense_crf, reference.dense_crf):
        leaves = [image.clone().requires_grad_(), *widths((1.0, 1.5, 30.0))]
        params = DenseCRFParams(
            leaves[1], 0.1, leaves[2], leaves[3], 0.2, normalisation=normalisation
        )
        results.append(
            torch.autograd.grad(function(unary, leaves[0], params, 2)[:, 0].sum(), leaves)
        )
    for own, other in zip(*results, strict=True):
        assert float(other.abs().max()) > 0
        assert float((own - other).abs().max()) <= 2e-5 * float(other.abs().max())


@pytest.mark.parametrize("potts", [True, False])
def test_matrices_of_weights(operator_target: Target, potts: bool) -> None:
    """Each kernel has one of its own, with and without gradients in them and the compatibility."""
    unary, image = scene(9, 12, 3)
    generator = torch.Generator().manual_seed(4)
    matrices = [torch.rand(3, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    results = []
    for device, function in (("cpu", reference.dense_crf), (operator_target.device, dense_crf)):
        for trained in (False, True):
            leaves = [matrix.to(device, copy=True).requires_grad_(trained) for matrix in matrices]
            params = DenseCRFParams(
                2, leaves[0], 4, 25, leaves[1], None if potts else leaves[2], "after"
            )
            marginals = function(unary.double().to(device), image.to(device), params, 3)
            results.append([marginals.detach().cpu()])
            if trained:
                used = leaves[: 2 if potts else 3]
                total = marginals[:, 0].sum()
                results[-1] += [grad.cpu() for grad in torch.autograd.grad(total, used)]
    for own, wanted in zip(results[2] + results[3], results[0] + results[1], strict=True):
        assert float((own - wanted).abs().max()) <= 1e-9 * float(wanted.abs().max())
    scalar = DenseCRFParams(2, 2.0, 4, 25, 3.0)
    identity = torch.eye(3)
    same = replace(scalar, gaussian_weight=2 * identity, bilateral_weight=3 * identity)
    torch.testing.assert_close(dense_crf(unary, image, same), dense_crf(unary, image, scalar))


@pytest.mark.parametrize("name", ["gaussian_weight", "bilateral_weight"])
def test_matrices_of_other_labels(name: str) -> None:
    unary, image = scene(6, 8, 3)
    for shape in ((3, 4), (3,)):
        with pytest.raises(ValueError, match=rf"^{name}: got shape .*, must be \[\] or \[K, K\]"):
            DenseCRFParams(**{name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=rf"^{name}: got shape \[4, 4\]"):
        dense_crf(unary, image, DenseCRFParams(**{name: torch.eye(4)}))


@pytest.mark.parametrize(("shape", "num_channels"), SHAPES)
def test_near_the_exact_ones(shape: tuple[int, ...], num_channels: int) -> None:
    """In direction and in size: the normalisation takes the factor of the lattice away."""
    unary, image = problem(shape, num_channels)
    image.requires_grad_()
    own, *_ = gradients(dense_crf, unary, image, widths())
    exact, *_ = gradients(reference.dense_crf, unary, image, widths(), exact=True)
    assert float(torch.cosine_similarity(own.flatten(), exact.flatten(), dim=0)) > 0.97
    assert float(own.norm() / exact.norm()) == pytest.approx(1, abs=0.1)


def smooth_problem() -> tuple[Tensor, Tensor, Tensor]:
    """Six draws of noisy energies of two labels, their smooth image, and the labels."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(36.0), torch.arange(36.0), indexing="ij")
    truth = (columns > 18).double()
    image = 100 + 5 * columns + 3 * torch.sin(rows / 3)
    noise = torch.randn(6, 2, 36, 36, generator=generator, dtype=torch.float64)
    unary = 1.5 * noise + torch.stack([truth, 1 - truth])
    return unary, image.expand(6, 1, -1, -1), truth.long().expand(6, -1, -1)


SMOOTH = DenseCRFParams(2, 1.0, 6, 60, 1.0)


def log_loss(image: Tensor, params: DenseCRFParams) -> Tensor:
    unary, _, labels = smooth_problem()
    return nll_loss(dense_crf_log_marginals(unary, image, params, 2), labels)


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_image_follows_its_gradient(iterations: int) -> None:
    """What the lattice computes changes along the gradient as the gradient says."""
    unary, image = scene(24, 30, 4)
    params = DenseCRFParams(3, 1.0, 8, 20, 2.0)

    upstream = torch.randn(unary.shape, generator=torch.Generator().manual_seed(1))

    def loss(image: Tensor) -> Tensor:
        return (dense_crf(unary.double(), image, params, iterations) * upstream).sum()

    leaf = image.float().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    step = gradient / gradient.abs().max()
    change = float(loss(image + step) - loss(image - step)) / 2
    assert change / float((gradient * step).sum()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", ["gaussian_sxy", "bilateral_sxy", "bilateral_srgb"])
def test_widths_follow_their_gradient(name: str) -> None:
    """Over steps that are large beside the ripples of the lattice."""
    _, image, _ = smooth_problem()
    value = getattr(SMOOTH, name)
    width = torch.tensor(value, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_loss(image, replace(SMOOTH, **{name: width})), width)
    step = 0.2 * value
    more, less = (
        float(log_loss(image, replace(SMOOTH, **{name: value + sign * step}))) for sign in (1, -1)
    )
    assert (more - less) / 2 / (float(gradient) * step) == pytest.approx(1, abs=0.2)


def test_unary_through_the_image() -> None:
    """The image may be made by the network whose energies are smoothed."""
    _, image = scene(6, 7, 3)
    images = image.float().requires_grad_()
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    energies = torch.einsum("kc,bchw->bkhw", mix, images / 100)
    dense_crf(energies, images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() > 0


def test_every_combination_of_gradients() -> None:
    """What wants a gradient gets the same one, whatever else wants one."""
    unary, image = problem((7, 8), 3)
    wanted = gradients(dense_crf, unary, image.clone().requires_grad_(), widths())
    for chosen in range(1, 16):
        leaves = [image.clone(), *(width.detach() for width in widths())]
        for index, leaf in enumerate(leaves):
            leaf.requires_grad_(bool(chosen >> index & 1))
        found = gradients(dense_crf, unary, leaves[0], leaves[1:])
        expected = [g for index, g in enumerate(wanted) if chosen >> index & 1]
        for own, other in zip(found, expected, strict=True):
            assert torch.allclose(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_one_width_for_each_axis_and_channel() -> None:
    """Their gradients sum to that of the width they share."""
    unary, image = problem((6, 7), 3)
    shared = gradients(dense_crf, unary, image, widths())
    pairs = zip((2, 2, 3), widths(), strict=True)
    each = [width.detach().repeat(count).requires_grad_() for count, width in pairs]
    for one, several in zip(shared, gradients(dense_crf, unary, image, each), strict=True):
        assert several.shape[0] in (2, 3)
        assert torch.allclose(several.sum(), one, rtol=1e-4)


def test_given_lattices_change_nothing() -> None:
    """They serve any number of backward passes, and get none of the gradient themselves."""
    unary, image = problem((7, 8), 3)
    image.requires_grad_()
    learnt = widths()
    params = DenseCRFParams(learnt[0], 1.0, learnt[1], learnt[2], 2.0)
    lattices = DenseCRFLattices.build(image, params)
    wanted = gradients(dense_crf, unary, image, learnt)
    for _ in range(2):
        found = gradients(dense_crf, unary, image, learnt, lattices=lattices)
        assert all(torch.equal(own, other) for own, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("learnt", ["nothing", "unary"])
def test_an_image_without_a_gradient_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, learnt: str
) -> None:
    """Not one filter more: as many calls as iterations and kernels, or one fused call."""
    unary, image = problem((7, 8), 3)
    calls: list[bool] = []
    apply = filter_module.permutohedral_apply

    def counted(lattice: Any, values: Tensor, transposed: bool, planes: Tensor | None) -> Tensor:
        calls.append(planes is not None)
        return apply(lattice, values, transposed, planes)

    monkeypatch.setattr("deepcrf_ext.ops.dense_crf.permutohedral_apply", counted)
    dense_crf(unary.requires_grad_(learnt == "unary"), image, iterations=3)
    assert calls == ([] if learnt == "nothing" else [False] * 6)
    calls.clear()
    with torch.no_grad():
        dense_crf(unary, image.requires_grad_(), iterations=3)
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_gradients_have_the_dtype_of_their_leaf(dtype: torch.dtype) -> None:
    unary, image = scene(6, 7, 3)
    image = image.to(dtype).requires_grad_()
    energies = unary.to(dtype).requires_grad_()
    width = torch.tensor(20.0, dtype=dtype, requires_grad=True)
    dense_crf(energies, image, DenseCRFParams(bilateral_sxy=width), 2)[:, 0].sum().backward()
    for leaf in (image, energies, width):
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("num_labels", [1, 3, 21, 150])
def test_log_marginals(operator_target: Target, num_labels: int) -> None:
    """They are the logarithms, and stay finite where marginals round to 0."""
    unary, image = scene(6, 7, num_labels, operator_target.device)
    params = DenseCRFParams(2, 1.0, 4, 25, 2.0)
    for iterations in (0, 1, 3):
        logs = dense_crf_log_marginals(unary, image, params, iterations)
        marginals = dense_crf(unary, image, params, iterations)
        assert torch.allclose(logs.exp(), marginals, rtol=1e-5, atol=1e-6)
        leaf = unary.clone().requires_grad_()
        unrolled = dense_crf_log_marginals(leaf, image, params, iterations)
        assert torch.allclose(unrolled.detach(), logs, rtol=1e-5, atol=1e-5)
    sure = dense_crf_log_marginals(300 * unary, image, params, 2)
    assert sure.isfinite().all()
    assert num_labels == 1 or float(sure.min()) < -200
    unary[:, 0] = torch.inf
    if num_labels > 1:
        forbidden = dense_crf_log_marginals(unary, image, params, 2)
        assert forbidden[:, 0].isneginf().all()
        assert forbidden[:, 1:].isfinite().all()


def test_compiles_whole(operator_target: Target) -> None:
    unary, image = scene(5, 6, 3, operator_target.device)
    torch.compiler.reset()
    compiled = torch.compile(dense_crf, backend="aot_eager", fullgraph=True)
    for images in (image.float().requires_grad_(), image):
        learnt = [width.detach().to(unary.device).requires_grad_() for width in widths()]
        found = gradients(compiled, unary, images, learnt)
        for own, other in zip(found, gradients(dense_crf, unary, images, learnt), strict=True):
            assert torch.allclose(own, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
