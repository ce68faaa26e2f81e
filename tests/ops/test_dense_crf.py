"""The dense CRF and its parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from accuracy import assert_close
from dense_problems import every_target, scene
from registered import opcheck
from targets import Target
from threads import torch_threads
from torch import Tensor

from deepcrf_ext import (
    DenseCRFLattices,
    DenseCRFParams,
    dense_crf,
    reference,
    unary_from_labels,
    unary_from_probabilities,
)
from deepcrf_ext.ops.dense_crf import DenseKernel, dense_crf_marginals
from deepcrf_ext.ops.dense_crf_params import NORMALISATIONS, PRESETS, Normalisation
from deepcrf_ext.ops.permutohedral_filter import PermutohedralLattice

SMALL = DenseCRFParams(bilateral_sxy=20)


@pytest.mark.parametrize("num_labels", [1, 2, 5, 11, 16, 21, 32, 40, 150])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_accuracy(operator_target: Target, num_labels: int, iterations: int) -> None:
    unary, image = scene(13, 17, num_labels)
    wanted = reference.dense_crf(unary.double(), image, SMALL, iterations)
    unary, image = unary.to(operator_target.device), image.to(operator_target.device)
    result = operator_target.functions.dense_crf(unary, image, SMALL, iterations)
    assert_close(result.cpu(), wanted.float())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_presets_and_dtypes(operator_target: Target, preset: str, dtype: torch.dtype) -> None:
    unary, image = scene(9, 12, 6, batch=2)
    unary = unary.to(dtype)
    params = DenseCRFParams.preset(preset)
    wanted = reference.dense_crf(unary.double(), image, params)
    unary, image = unary.to(operator_target.device), image.to(operator_target.device)
    result = operator_target.functions.dense_crf(unary, image, params)
    assert result.dtype == dtype
    limit = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 1e-2)
    assert float((result.cpu().double() - wanted).abs().max()) < limit


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("learnt", [False, True])
def test_normalisations(
    operator_target: Target, normalisation: Normalisation, learnt: bool
) -> None:
    params = replace(SMALL, gaussian_weight=0.1, bilateral_weight=0.2, normalisation=normalisation)
    unary, image = scene(9, 12, 6)
    wanted = reference.dense_crf(unary.double(), image, params, 3)
    unary, image = unary.to(operator_target.device), image.to(operator_target.device)
    result = operator_target.functions.dense_crf(unary.requires_grad_(learnt), image, params, 3)
    assert_close(result.detach().cpu(), wanted.float())
    with pytest.raises(ValueError, match="normalisation: got 'both', must be one of symmetric"):
        replace(SMALL, normalisation="both")


def test_several_blocks_of_positions() -> None:
    unary, image = scene(100, 170, 3)
    wanted = reference.dense_crf(unary.double(), image, SMALL, 4)
    assert float((dense_crf(unary, image, SMALL, 4).double() - wanted).abs().max()) < 1e-4


def test_near_the_exact_crf() -> None:
    """The lattice approximates the Gaussian sums; labels agree but for a few pixels."""
    unary, image = scene(40, 50, 5)
    params = DenseCRFParams(gaussian_weight=1, bilateral_sxy=15, bilateral_weight=2)
    result = dense_crf(unary.double(), image, params, 5)
    exact = reference.dense_crf(unary.double(), image, params, 5, exact=True)
    assert float((result.argmax(1) == exact.argmax(1)).double().mean()) > 0.98
    assert float((result - exact).abs().mean()) < 0.02


@every_target
def test_compatibility_matrix(target: Target) -> None:
    """Potts is its matrix, up to the same energy for every label; labels may be permuted."""
    unary, image = scene(9, 12, 4, target.device)
    unary = unary.double()
    run = target.functions.dense_crf
    potts = run(unary, image, SMALL, 3)
    matrix = replace(SMALL, compatibility=-torch.eye(4).to(unary))
    assert_close(run(unary, image, matrix, 3), potts)

    uneven = torch.rand(4, 4, generator=torch.Generator().manual_seed(3)).to(unary)
    order = torch.tensor([2, 0, 3, 1])
    result = run(unary, image, replace(SMALL, compatibility=uneven), 3)
    assert_close(result, reference.dense_crf(unary, image, replace(SMALL, compatibility=uneven), 3))
    transposed = replace(SMALL, compatibility=uneven.t().contiguous().t())
    assert_close(run(unary, image, transposed, 3), result)
    permuted = replace(SMALL, compatibility=uneven[order][:, order])
    assert_close(run(unary[:, order], image, permuted, 3), result[:, order])


def test_autocast_changes_nothing(operator_target: Target) -> None:
    unary, image = scene(9, 12, 4, operator_target.device)
    uneven = torch.rand(4, 4, generator=torch.Generator().manual_seed(3)).to(unary)
    params = replace(SMALL, gaussian_weight=uneven, compatibility=uneven)
    for energies in (unary, unary.clone().requires_grad_()):
        wanted = dense_crf(energies, image, params, 3)
        with torch.autocast(operator_target.device.type, torch.bfloat16):
            assert_close(dense_crf(energies, image, params, 3).detach(), wanted.detach())
            assert dense_crf(energies.half(), image, params, 3).dtype == torch.float32


def test_learnable(operator_target: Target) -> None:
    unary, image = scene(2, 3, 3, operator_target.device)
    lattices = DenseCRFLattices.build(image, SMALL)

    def function(unary: Tensor, gaussian: Tensor, bilateral: Tensor, matrix: Tensor) -> Tensor:
        params = replace(
            SMALL, gaussian_weight=gaussian, bilateral_weight=bilateral, compatibility=matrix
        )
        return dense_crf(unary, image, params, 2, lattices)

    leaves = [
        unary.double(),
        torch.tensor(1.5, dtype=torch.float64),
        torch.tensor(0.7, dtype=torch.float64),
        torch.rand(3, 3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64),
    ]
    leaves = [leaf.to(unary.device).requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_the_way_with_gradients_agrees_with_the_fused_one(operator_target: Target) -> None:
    unary, image = scene(12, 9, 7, operator_target.device, batch=2)
    unrolled = dense_crf(unary.clone().requires_grad_(), image, SMALL, 4)
    assert unrolled.requires_grad
    assert float((unrolled.detach() - dense_crf(unary, image, SMALL, 4)).abs().max()) < 1e-5


@every_target
def test_images_of_a_batch_are_independent(target: Target) -> None:
    unary, image = scene(8, 11, 4, target.device, batch=3)
    run = target.functions.dense_crf
    whole = run(unary, image, SMALL, 3)
    for b in range(3):
        assert torch.equal(run(unary[b : b + 1], image[b : b + 1], SMALL, 3), whole[b : b + 1])


def test_lattices_are_reused(operator_target: Target) -> None:
    unary, image = scene(7, 9, 4, operator_target.device)
    lattices = DenseCRFLattices.build(image, SMALL)
    heavier = replace(SMALL, bilateral_weight=20.0)
    for params in (SMALL, heavier):
        reused = dense_crf(unary, image, params, 3, lattices)
        assert torch.equal(reused, dense_crf(unary, image, params, 3))
    with pytest.raises(ValueError, match="lattices: got those of"):
        dense_crf(unary, image, DenseCRFParams(), 3, lattices)
    with pytest.raises(TypeError, match="lattices: got int, must be a DenseCRFLattices"):
        dense_crf(unary, image, SMALL, 3, 3)  # type: ignore[arg-type]


def test_lattices_of_inference_mode_can_be_trained_with() -> None:
    unary, image = scene(7, 9, 4)
    wanted = torch.autograd.grad(dense_crf(leaf := unary.requires_grad_(), image).log().sum(), leaf)
    with torch.inference_mode():
        lattices = DenseCRFLattices.build(image, DenseCRFParams())
        lattice = PermutohedralLattice(torch.rand(6, 3))
    result = dense_crf(unary, image, lattices=lattices)
    assert torch.equal(torch.autograd.grad(result.log().sum(), unary)[0], wanted[0])
    values = torch.rand(6, 2, requires_grad=True)
    lattice.filter(values).sum().backward()
    assert values.grad is not None


def test_threads_do_not_change_a_bit() -> None:
    unary, image = scene(150, 130, 3)
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            results.append(dense_crf(unary, image, iterations=2))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@every_target
def test_one_label_and_one_pixel(target: Target) -> None:
    run = target.functions.dense_crf
    unary, image = scene(6, 7, 1, target.device)
    assert torch.equal(run(unary, image), torch.ones_like(unary))
    unary, image = scene(1, 1, 5, target.device)
    # Alone with itself, a pixel strengthens what it believes.
    alone = run(unary, image, iterations=1)
    assert_close(alone, (-unary + 13 * (-unary).softmax(1)).softmax(1))


@every_target
@pytest.mark.parametrize("width", [1e6, 0.05])
def test_extreme_widths(target: Target, width: float) -> None:
    """Wide kernels join all pixels, narrow ones none."""
    unary, image = scene(7, 9, 4, target.device)
    unary = unary.double()
    params = DenseCRFParams(width, 2.0, width, width, 1.0)
    marginals = (-unary).softmax(1)
    mean = marginals.mean((2, 3), keepdim=True) if width > 1 else marginals
    result = target.functions.dense_crf(unary, image, params, 1)
    assert float((result - (-unary + 3 * mean).softmax(1)).abs().max()) < 2e-3


@every_target
def test_constant_image(target: Target) -> None:
    unary, image = scene(10, 12, 3, target.device)
    flat = torch.full_like(image, 128)
    result = target.functions.dense_crf(unary.double(), flat, SMALL, 2)
    assert_close(result, reference.dense_crf(unary.double(), flat, SMALL, 2))
    assert_close(result.sum(1), torch.ones_like(result[:, 0]))


@pytest.mark.slow
def test_twelve_megapixels() -> None:
    """Noisy energies of a photograph's size come out as the two halves of the image."""
    height, width = 3000, 4000
    truth = torch.arange(width) >= 1500
    image = torch.where(truth, 200, 40).to(torch.uint8).expand(1, 3, height, width)
    generator = torch.Generator().manual_seed(0)
    unary = torch.randn(1, 2, height, width, generator=generator)
    unary[:, 0] += truth.float()
    unary[:, 1] += (~truth).float()
    result = dense_crf(unary, image, iterations=1)
    assert float(((result[:, 1] > 0.5) == truth).float().mean()) > 0.999
    assert float((unary[:, 0] > unary[:, 1]).eq(truth).float().mean()) < 0.8


@every_target
def test_forbidden_labels(target: Target) -> None:
    unary, image = scene(6, 8, 4, target.device)
    unary[:, 2] = torch.inf
    result = target.functions.dense_crf(unary, image, SMALL, 3)
    assert result.isfinite().all()
    assert (result[:, 2] == 0).all()


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_energies_without_a_softmax(bad: float, with_gradient: bool) -> None:
    unary, image = scene(6, 8, 3)
    unary[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="unary: got NaN"):
        dense_crf(unary.requires_grad_(with_gradient), image)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_energies_that_forbid_everything(with_gradient: bool) -> None:
    unary, image = scene(6, 8, 3)
    unary[0, :, 2, 3] = torch.inf
    with pytest.raises(ValueError, match="no finite energy"):
        dense_crf(unary.requires_grad_(with_gradient), image)


def test_images_that_cannot_be_used() -> None:
    unary, image = scene(6, 8, 3)
    with pytest.raises(ValueError, match="image: got device meta, must be cpu as unary"):
        dense_crf(unary, image.to("meta"))
    with pytest.raises(TypeError, match="image: got dtype"):
        dense_crf(unary, image.long())
    floating = image.float()
    floating[0, 1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        dense_crf(unary, floating)
    with pytest.raises(ValueError, match="widen the kernel"):
        dense_crf(unary, image, DenseCRFParams(bilateral_srgb=1e-6))


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (ValueError, {"gaussian_sxy": 0.0}),
        (ValueError, {"bilateral_sxy": float("inf")}),
        (ValueError, {"bilateral_srgb": -1.0}),
        (TypeError, {"bilateral_sxy": "80"}),
        (ValueError, {"gaussian_weight": float("nan")}),
        (TypeError, {"bilateral_weight": None}),
        (TypeError, {"bilateral_weight": torch.tensor(10)}),
        (ValueError, {"gaussian_weight": torch.zeros(2)}),
        (ValueError, {"bilateral_weight": torch.tensor(torch.nan)}),
        (ValueError, {"compatibility": torch.tensor([[0.0, torch.inf], [1.0, 0.0]])}),
        (ValueError, {"compatibility": torch.zeros(2, 3)}),
    ],
)
def test_bad_parameters(error: type[Exception], change: dict[str, Any]) -> None:
    with pytest.raises(error, match=next(iter(change))):
        DenseCRFParams(**change)


def test_presets_are_the_published_numbers() -> None:
    deeplab = DenseCRFParams.preset("deeplab")
    assert (deeplab.gaussian_sxy, deeplab.gaussian_weight) == (1, 3)
    assert (deeplab.bilateral_sxy, deeplab.bilateral_srgb, deeplab.bilateral_weight) == (67, 3, 4)
    assert DenseCRFParams.preset("pydensecrf") == DenseCRFParams(3, 3, 80, 13, 10)


@pytest.mark.parametrize("name", ["densenet", None, ["deeplab"]])
def test_unknown_preset(name: Any) -> None:
    with pytest.raises(ValueError, match="name: got .* pydensecrf, convcrf, deeplab"):
        DenseCRFParams.preset(name)


def test_unary_from_probabilities() -> None:
    probabilities = torch.tensor([0.0, 0.25, 1.5])
    wanted = torch.tensor([1e-5, 0.25, 1.0]).log().neg()
    assert_close(unary_from_probabilities(probabilities), wanted)
    assert torch.equal(unary_from_probabilities(probabilities, 1), torch.zeros(3))
    for minimum in (0.0, 1.5):
        with pytest.raises(ValueError, match="minimum"):
            unary_from_probabilities(probabilities, minimum)
    with pytest.raises(TypeError, match="minimum: got str, must be a number"):
        unary_from_probabilities(probabilities, "1e-5")  # type: ignore[arg-type]


def test_unary_from_probabilities_of_half_precision() -> None:
    """Also with a minimum that float16 rounds to 0."""
    probabilities = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float16)
    energies = unary_from_probabilities(probabilities, 1e-9)
    wanted = torch.tensor([1e-9, 0.2, 1.0]).log().neg().half()
    torch.testing.assert_close(energies, wanted)


def test_unary_from_labels() -> None:
    labels = torch.tensor([[[0, 2], [1, 9]]])
    probabilities = (-unary_from_labels(labels, 3, 0.7, unsure=9)).exp()
    assert_close(probabilities.sum(1), torch.ones(1, 2, 2))
    assert_close(probabilities[0, :, 0, 1], torch.tensor([0.15, 0.15, 0.7]))
    assert_close(probabilities[0, :, 1, 1], torch.full((3,), 1 / 3))
    with pytest.raises(ValueError, match="labels: got 9"):
        unary_from_labels(labels, 3, 0.7)
    with pytest.raises(ValueError, match=r"labels: got -1, must be in 0\.\.2 or unsure = 9"):
        unary_from_labels(labels - 1, 3, 0.7, unsure=9)
    with pytest.raises(ValueError, match="labels: got 3"):
        unary_from_labels(labels + 1, 3, 0.7)
    for confidence in (0, 1):
        with pytest.raises(ValueError, match="confidence"):
            unary_from_labels(labels, 3, confidence)
    with pytest.raises(ValueError, match="num_labels"):
        unary_from_labels(labels * 0, 1, 0.7)
    for unsure in (9.0, "9", True):
        with pytest.raises(TypeError, match="unsure: got .*, must be an int"):
            unary_from_labels(labels, 3, 0.7, unsure)  # type: ignore[arg-type]
    assert unary_from_labels(labels[:0], 3, 0.7).shape == (0, 3, 2, 2)
    for bad in (labels.tolist(), labels.float(), labels.cfloat(), labels == 0):
        with pytest.raises(TypeError, match="labels: got .*, must be a"):
            unary_from_labels(bad, 3, 0.7)
    with pytest.raises(ValueError, match=r"labels: got shape \[2\], must be"):
        unary_from_labels(labels[0, 0], 3, 0.7)


def test_fused_operator_passes_opcheck(operator_target: Target) -> None:
    unary, image = scene(5, 6, 3, operator_target.device)
    lattices = DenseCRFLattices.build(image, SMALL)
    weight = torch.tensor(3.0, device=operator_target.device)
    kernel = DenseKernel.normalised(lattices.gaussian, weight)
    tensors = [*kernel.lattice.tensors, kernel.splat_scale, kernel.slice_scale, weight]
    for log in (False, True):
        opcheck(dense_crf_marginals, (tensors, unary[0].flatten(1), 2, log))


def test_compiles_whole(operator_target: Target) -> None:
    unary, image = scene(5, 6, 3, operator_target.device)
    torch.compiler.reset()
    compiled = torch.compile(dense_crf, backend="aot_eager", fullgraph=True)
    assert_close(compiled(unary, image, SMALL, 2), dense_crf(unary, image, SMALL, 2))
