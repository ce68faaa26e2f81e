"""The layer `DenseCRF`."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from accuracy import assert_close
from dense_problems import scene, volume
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import interpolate, nll_loss

from deepcrf_ext import DenseCRFParams, dense_crf
from deepcrf_ext.nn import DenseCRF

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = DenseCRFParams(2, 1.0, 4, 25, 2.0)
LEARN: list[tuple[str, ...]] = [(), ("weights",), ("compatibility",), ("widths",)]
ALL = ("weights", "compatibility", "widths")


def problem(num_labels: int = 3, batch: int = 2) -> tuple[Tensor, Tensor]:
    unary, image = scene(7, 9, num_labels, batch=batch)
    return -unary, image


@pytest.mark.parametrize("learn", [*LEARN, ALL])
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_a_fresh_layer_is_the_operator(learn: tuple[str, ...], iterations: int) -> None:
    logits, image = problem()
    wanted = dense_crf(-logits, image, PARAMS, iterations)
    layer = DenseCRF(3, iterations, PARAMS, learn)
    for result in (layer(logits, image), layer.requires_grad_(False)(logits, image)):
        assert result.dtype == torch.float32
        assert_close(result.detach().exp(), wanted)


@pytest.mark.parametrize("learn", [(), ("weights",), ALL])
def test_matrices_of_weights(learn: tuple[str, ...]) -> None:
    """Of one kernel or both; learnt, kept in the state, and there again after a reset."""
    logits, image = problem()
    matrix = torch.rand(3, 3, generator=torch.Generator().manual_seed(5))
    for params in (
        DenseCRFParams(2, matrix, 4, 25, 2.0),
        DenseCRFParams(2, matrix, 4, 25, matrix.t(), normalisation="after"),
    ):
        layer = DenseCRF(3, 3, params, learn)
        assert_close(layer(logits, image).detach().exp(), dense_crf(-logits, image, params, 3))
        assert "gaussian_weight=matrix" in repr(layer)
        if learn:
            nll_loss(layer(logits, image), torch.zeros(2, 7, 9, dtype=torch.int64)).backward()
            assert layer.gaussian_weight.grad.count_nonzero() == 9  # type: ignore[union-attr]
        other = DenseCRF(3, 3, replace(params, gaussian_weight=torch.zeros(3, 3)), learn)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(logits, image), layer(logits, image))
        other.reset_parameters()
        assert not other.gaussian_weight.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shape", "num_channels"), [((30,), 2), ((7, 9), 1), ((4, 6, 5), 1), ((3, 4, 5), 4)]
)
def test_any_axes_and_channels(shape: tuple[int, ...], num_channels: int) -> None:
    unary, image = volume(shape, num_channels, 3)
    result = DenseCRF(3, 2, PARAMS)(-unary, image)
    assert_close(result.detach().exp(), dense_crf(unary, image, PARAMS, 2))


def test_defaults() -> None:
    logits, image = problem()
    layer = DenseCRF(3)
    assert [name for name, _ in layer.named_parameters()] == [
        "gaussian_weight",
        "bilateral_weight",
        "compatibility",
    ]
    assert_close(layer(logits, image).detach().exp(), dense_crf(-logits, image, iterations=5))
    assert_close(layer.current_params().compatibility.detach(), 1 - torch.eye(3))  # type: ignore[union-attr]


def test_parameters_are_what_is_learnt() -> None:
    names = {learn: set(dict(DenseCRF(3, learn=learn).named_parameters())) for learn in LEARN}
    assert names[()] == set()
    assert names[("weights",)] == {"gaussian_weight", "bilateral_weight"}
    assert names[("compatibility",)] == {"compatibility"}
    widths = {"gaussian_sxy", "bilateral_sxy", "bilateral_srgb"}
    assert names[("widths",)] == {f"log_scales.{name}" for name in widths}
    assert set(DenseCRF(3, learn=("widths",)).state_dict()) == names[("widths",)] | widths
    assert DenseCRF(3, learn=()).state_dict() == {}
    assert set(DenseCRF(3, learn=(), mean=100.0, std=2.0).state_dict()) == {"mean", "std"}


@pytest.mark.parametrize("learn", [*LEARN[1:], ALL])
def test_every_parameter_gets_a_gradient(learn: tuple[str, ...]) -> None:
    """So that DistributedDataParallel waits for none in vain."""
    logits, image = problem()
    layer = DenseCRF(3, 1, PARAMS, learn)
    layer(logits, image)[:, 0].sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_reach_logits_and_image() -> None:
    logits, image = problem()
    logits.requires_grad_()
    images = image.float().requires_grad_()
    DenseCRF(3, 2, PARAMS, learn=())(logits, images)[:, 0].sum().backward()
    for leaf in (logits, images):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 0


def noisy_regions() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [4, 3, 24, 24] with noise beyond the signal, an image that shows regions, labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(4, 24, 24, dtype=torch.int64)
    labels[:, :, 8:] = 1
    labels[:, 14:] = 2
    colours = torch.tensor([[200.0, 60, 60], [60, 200, 60], [60, 60, 200]])
    image = colours[labels].permute(0, 3, 1, 2) + 5 * torch.randn(4, 3, 24, 24, generator=generator)
    logits = torch.randn(4, 3, 24, 24, generator=generator)
    return (
        logits.scatter_add(1, labels[:, None], torch.full_like(logits[:, :1], 0.7)),
        image,
        labels,
    )


@pytest.mark.parametrize("learn", [*LEARN[1:], ALL])
def test_training_improves_each_of_them(learn: tuple[str, ...]) -> None:
    logits, image, labels = noisy_regions()
    weight = 2.0 if learn == ("widths",) else 0.2
    layer = DenseCRF(3, 2, DenseCRFParams(1, weight, 3, 20, weight), learn)
    optimiser = torch.optim.Adam(layer.parameters(), 0.1)
    losses = []
    for _ in range(8):
        loss = nll_loss(layer(logits, image), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    least = {("compatibility",): 0.03, ("widths",): 0.01}.get(learn, 0.1)
    assert losses[-1] < losses[0] - least
    if "weights" in learn:
        assert layer.bilateral_weight.item() > 0.5


def test_widths_stay_positive() -> None:
    logits, image, labels = noisy_regions()
    layer = DenseCRF(3, 1, PARAMS, ("widths",))
    optimiser = torch.optim.SGD(layer.parameters(), 50.0)
    for _ in range(3):
        optimiser.zero_grad()
        nll_loss(layer(logits, image), labels).backward()
        optimiser.step()
    for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
        assert getattr(layer.current_params(), name) > 0


def test_one_learnt_width_for_each_axis_and_channel() -> None:
    logits, image = problem()
    layer = DenseCRF(3, 1, DenseCRFParams((2, 3), 1.0, 4, (20, 25, 30), 2.0), ("widths",))
    shapes = {name: tuple(scale.shape) for name, scale in layer.log_scales.items()}
    assert shapes == {"gaussian_sxy": (2,), "bilateral_sxy": (), "bilateral_srgb": (3,)}
    layer(logits, image)[:, 0].sum().backward()
    assert (layer.log_scales["bilateral_srgb"].grad != 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """float32 at least comes out; the layer may be in the dtype of the logits or in float32."""
    logits, image = problem()
    wanted = DenseCRF(3, 2, PARAMS)(logits.to(dtype).double(), image)
    for layer in (DenseCRF(3, 2, PARAMS), DenseCRF(3, 2, PARAMS).to(dtype)):
        result = layer(logits.to(dtype), image)
        assert result.dtype == torch.promote_types(dtype, torch.float32)
        assert_close(result.detach(), wanted.detach().to(result.dtype))


def test_autocast_changes_nothing() -> None:
    logits, image = problem()
    layer = DenseCRF(3, 2, PARAMS, ALL, mean=100.0, std=50.0)
    images = (image.float() - 100) / 50
    wanted = layer(logits, images)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(logits, images)
    assert torch.equal(result, wanted)
    result[:, 0].sum().backward()


def test_logits_are_resized_to_the_image() -> None:
    logits, image = problem()
    layer = DenseCRF(3, 2, PARAMS)
    small = logits[..., ::2, ::2]
    whole = interpolate(small, (7, 9), mode="bilinear", align_corners=False)
    assert torch.equal(layer(small, image), layer(whole, image))
    unary, cube = volume((4, 6, 5), 1, 3)
    assert layer(unary[..., ::2, ::3, ::2], cube).shape == (1, 3, 4, 6, 5)
    unary, line = volume((9,), 1, 3)
    assert layer(unary[..., ::3], line).shape == (1, 3, 9)


def test_normalisation_is_undone() -> None:
    logits, image = problem()
    mean, std = torch.tensor([123.0, 116, 103]), torch.tensor([64.0, 32, 128])
    wanted = DenseCRF(3, 2, PARAMS)(logits, image.float())
    normalised = (image - mean[:, None, None]) / std[:, None, None]
    for given in (mean.tolist(), tuple(mean.tolist()), mean, mean.numpy()):
        layer = DenseCRF(3, 2, PARAMS, mean=given, std=std.tolist())
        result = layer(logits, normalised)
        assert torch.equal(result, wanted)
        assert torch.equal(layer(logits, image), DenseCRF(3, 2, PARAMS)(logits, image))
    shifted = DenseCRF(3, 2, PARAMS, mean=np.float32(128))(logits, image.float() - 128)
    assert torch.equal(shifted, wanted)


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_normalisation_of_tensors_for_broadcasting(shape: tuple[int, ...]) -> None:
    mean = torch.tensor([120.0, 110.0, 100.0])
    for given in (mean.view(shape), mean.view(shape).numpy()):
        assert torch.equal(DenseCRF(3, mean=given).get_buffer("mean"), mean)
    with pytest.raises(TypeError, match="mean: got list"):
        DenseCRF(3, mean=torch.ones(2, 3))


@pytest.mark.parametrize("size", [(7, 9), (2, 3), (4, 5), (14, 18)])
@pytest.mark.parametrize("trained", [False, True])
def test_logits_forbid_a_label_at_any_stride(size: tuple[int, int], trained: bool) -> None:
    _, image = problem()
    logits = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    two = DenseCRF(2, 2, PARAMS, learn=())(logits[:, :2], image)
    logits[:, 2] = -torch.inf
    logits.requires_grad_(trained)
    result = DenseCRF(3, 2, PARAMS)(logits, image)
    assert_close(result[:, :2].exp().detach(), two.exp())
    assert (result[:, 2] < -1e29).all()
    if trained:
        nll_loss(result, torch.zeros_like(image[:, 0], dtype=torch.int64)).backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert logits.grad[:, :2].any()


def test_numbers_of_normalisation_in_other_units_warn() -> None:
    with pytest.warns(UserWarning, match=r"mean, std: got numbers within 0\.\.1"):
        DenseCRF(3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    with pytest.warns(UserWarning, match=r"mean, std: got numbers within 0\.\.1"):
        DenseCRF(3, std=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DenseCRF(3, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
        DenseCRF(3, params=DenseCRFParams(bilateral_srgb=0.05), mean=0.5, std=0.5)


def test_given_parameters() -> None:
    """Tensors are taken by value: as the start of what is learnt, or for good."""
    matrix = torch.tensor([[0.0, 2.0], [1.0, -1.0]], requires_grad=True)
    params = DenseCRFParams(
        torch.tensor(2.0, requires_grad=True),
        torch.tensor(1.5),
        torch.tensor([4.0, 5.0]),
        25,
        torch.tensor(2.0, requires_grad=True),
        matrix,
    )
    logits, image = problem(2)
    wanted = dense_crf(-logits, image, params, 2).detach()
    for learn in [*LEARN, ALL]:
        layer = DenseCRF(2, 2, params, learn)
        assert_close(layer(logits, image).detach().exp(), wanted)
        assert all(parameter is not matrix for parameter in layer.parameters())
        assert_close(deepcopy(layer)(logits, image).detach().exp(), wanted)
    assert set(DenseCRF(2, 2, params, ()).state_dict()) == {"compatibility"}


def test_an_empty_batch() -> None:
    layer = DenseCRF(3)
    assert layer(torch.zeros(0, 3, 4, 5), torch.zeros(0, 1, 4, 5)).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("learn", [(), ALL])
def test_compiles_whole(learn: tuple[str, ...]) -> None:
    logits, image = problem()
    layer = DenseCRF(3, 2, PARAMS, learn, mean=100.0)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    logits.requires_grad_()
    result = compiled(logits, image)
    assert_close(result.detach(), layer(logits, image).detach())
    result[:, 0].sum().backward()
    assert logits.grad is not None


def test_one_graph_serves_all_sizes() -> None:
    """Of images; another batch size is another graph."""
    layer = DenseCRF(3, 1, PARAMS)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for height, width in ((7, 9), (11, 8), (5, 12)):
        unary, image = scene(height, width, 3)
        assert_close(compiled(-unary, image).detach(), layer(-unary, image).detach())
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("learn", [("weights",), ("widths",)])
def test_exports_with_dynamic_sizes(learn: tuple[str, ...], strict: bool) -> None:
    layer = DenseCRF(3, 1, PARAMS, learn)
    unary, image = scene(7, 9, 3)
    height, width = torch.export.Dim("height", min=4), torch.export.Dim("width", min=4)
    sizes = {2: height, 3: width}
    program = torch.export.export(
        layer, (-unary, image), strict=strict, dynamic_shapes=(sizes, sizes)
    )
    file = BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    unary, image = scene(10, 8, 3)
    wanted = layer(-unary, image).detach()
    for exported in (program, loaded):
        assert_close(exported.module()(-unary, image).detach(), wanted)
