"""The layer `DenseCRF`."""

from __future__ import annotations

import copy
import doctest
import pickle
import warnings
from typing import Any

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
from deepcrf_ext.nn import dense_crf as module

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = DenseCRFParams(2, 1.0, 4, 25, 2.0)
LEARN: list[tuple[str, ...]] = [(), ("weights",), ("compatibility",), ("widths",)]
TWO_LABELS = DenseCRFParams(compatibility=torch.eye(2))
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


def test_numbers_of_normalisation_in_other_units_warn() -> None:
    with pytest.warns(UserWarning, match=r"mean, std: got numbers within 0\.\.1"):
        DenseCRF(3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
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
    assert set(DenseCRF(2, 2, params, ()).state_dict()) == {"compatibility"}


@pytest.mark.parametrize("learn", [(), ALL])
def test_copies_and_state(learn: tuple[str, ...]) -> None:
    logits, image = problem()
    layer = DenseCRF(3, 2, PARAMS, learn, mean=100.0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.rand(
                parameter.shape, generator=torch.Generator().manual_seed(0)
            )
    wanted = layer(logits, image)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(logits, image), wanted)
    # What is learnt does not depend on where another layer of the same kind started.
    other = DenseCRF(3, 2, DenseCRFParams(1, 9.0, 9, 9, 9.0) if learn else PARAMS, learn, mean=90.0)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(logits, image), wanted)


def test_reset_parameters() -> None:
    logits, image = problem()
    layer = DenseCRF(3, 2, PARAMS, ALL)
    wanted = layer(logits, image)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 1
    layer.reset_parameters()
    assert torch.equal(layer(logits, image), wanted)


@pytest.mark.filterwarnings("ignore:image. got negative values")
@pytest.mark.parametrize("learn", [(), ALL])
@pytest.mark.parametrize("compatibility", [None, torch.rand(3, 3)])
def test_a_layer_made_on_meta(learn: tuple[str, ...], compatibility: Tensor | None) -> None:
    """It is filled by `reset_parameters`, or by the state of another."""
    logits, image = problem()
    image = (image - 110.0) / 58  # a network's own
    params = DenseCRFParams(2, 1.0, (4, 5), 25, 2.0, compatibility)

    def make() -> DenseCRF:
        return DenseCRF(3, 2, params, learn, mean=(100.0, 110.0, 120.0), std=58.0)

    wanted = make()(logits, image)
    with torch.device("meta"):
        reset, loaded = make(), make()
    for layer in (reset, loaded):
        assert all(tensor.is_meta for tensor in layer.state_dict().values())
    reset.to_empty(device="cpu")
    for tensor in reset.state_dict().values():
        tensor.fill_(torch.nan)
    reset.reset_parameters()
    loaded.load_state_dict(make().state_dict(), assign=True)
    for layer in (reset, loaded):
        assert torch.equal(layer(logits, image), wanted)


def test_a_state_that_was_loaded_is_not_the_start() -> None:
    """A matrix that is not learnt is a part of the state, too."""
    logits, image = problem()
    first, other = (DenseCRFParams(compatibility=matrix) for matrix in torch.rand(2, 3, 3))
    layer = DenseCRF(3, 2, first, ())
    wanted = layer(logits, image)
    layer.load_state_dict(DenseCRF(3, 2, other, ()).state_dict())
    assert not torch.equal(layer(logits, image), wanted)
    layer.reset_parameters()
    assert torch.equal(layer(logits, image), wanted)


def test_repr() -> None:
    text = repr(DenseCRF(3, 2, PARAMS, ["widths"]))
    for part in ("num_classes=3", "iterations=2", "learn=('widths',)", "bilateral_srgb=25.0"):
        assert part in text


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


def test_exports_with_dynamic_sizes() -> None:
    layer = DenseCRF(3, 1, PARAMS)
    unary, image = scene(7, 9, 3)
    height, width = torch.export.Dim("height", min=4), torch.export.Dim("width", min=4)
    sizes = {2: height, 3: width}
    program = torch.export.export(
        layer, (-unary, image), strict=False, dynamic_shapes=(sizes, sizes)
    )
    unary, image = scene(10, 8, 3)
    assert_close(program.module()(-unary, image).detach(), layer(-unary, image).detach())


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "num_classes: got float", {"num_classes": 3.0}),
        (ValueError, "num_classes: got 0", {"num_classes": 0}),
        (ValueError, "iterations: got -1", {"iterations": -1}),
        (TypeError, "params: got dict", {"params": {}}),
        (ValueError, "params: got a compatibility of 2", {"params": TWO_LABELS}),
        (TypeError, "learn: got str", {"learn": "weights"}),
        (ValueError, "learn: got 'weight', must be some of weights", {"learn": ("weight",)}),
        (TypeError, "mean: got 'a'", {"mean": "a"}),
        (TypeError, "mean: got bool", {"mean": [True]}),
        (ValueError, "std: got 0", {"std": (0.0, 1.0, 1.0)}),
    ],
)  # fmt: skip
def test_bad_arguments(error: type[Exception], match: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        DenseCRF(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "logits: got shape", {"logits": torch.zeros(2, 4, 7, 9)}),
        (TypeError, "logits: got dtype", {"logits": torch.zeros(2, 3, 7, 9, dtype=torch.int64)}),
        (TypeError, "logits: got ndarray", {"logits": np.zeros((2, 3, 7, 9))}),
        (ValueError, "image: got shape", {"image": torch.zeros(1, 3, 7, 9)}),
        (ValueError, "image: got 1 spatial axes", {"image": torch.zeros(2, 3, 7)}),
        (TypeError, "image: got dtype", {"image": torch.zeros(2, 3, 7, 9, dtype=torch.int64)}),
        (ValueError, "mean: got 3 numbers", {"image": torch.zeros(2, 4, 7, 9)}),
    ],
)
def test_bad_inputs(error: type[Exception], match: str, change: dict[str, Any]) -> None:
    logits, image = problem()
    layer = DenseCRF(3, mean=(1.0, 2.0, 3.0))
    with pytest.raises(error, match=match):
        layer(**{"logits": logits, "image": image, **change})


def test_docstring() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
