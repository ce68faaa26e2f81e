"""What the dense CRF refuses, and images in other units, of which it warns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dense_problems import every_target, scene
from targets import Target
from torch import Tensor

from deepcrf_ext import DenseCRFLattices, DenseCRFParams, dense_crf, dense_crf_loss
from deepcrf_ext.nn import DenseCRF
from deepcrf_ext.ops import _image_checks, dense_crf_lattices

PARAMS = DenseCRFParams(2, 1.0, 4, 25, 2.0)


@every_target
@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, r"unary: got shape \[3\], must be \[B, K, \*S\]", {"unary": torch.zeros(3)}),
        (ValueError, "unary: got shape", {"unary": torch.zeros(1, 2, 3, 4, 5, 6)}),
        (ValueError, r"unary: got shape \[6, 8\]", {"unary": torch.zeros(6, 8)}),
        (TypeError, "unary: got dtype", {"unary": torch.zeros(1, 3, 6, 8, dtype=torch.int64)}),
        (TypeError, "unary: got list", {"unary": [1.0]}),
        (ValueError, "image: got shape", {"image": torch.zeros(1, 6, 8)}),
        (ValueError, "image: got shape", {"image": torch.zeros(1, 3, 6, 7)}),
        (TypeError, "image: got ndarray", {"image": np.zeros((1, 3, 6, 8))}),
        (ValueError, "image: got 254 channels", {"image": torch.zeros(1, 254, 6, 8)}),
        (TypeError, "params: got dict", {"params": {}}),
        (ValueError, "iterations: got -1", {"iterations": -1}),
        (TypeError, "iterations: got float", {"iterations": 2.0}),
        (TypeError, "iterations: got bool", {"iterations": True}),
        (ValueError, "gaussian_sxy: got 3 widths", {"params": DenseCRFParams((1, 2, 3))}),
        (ValueError, "bilateral_sxy: got 1 widths", {"params": DenseCRFParams(bilateral_sxy=[1])}),
        (
            ValueError,
            "bilateral_srgb: got 2 widths, must be one number or 3, one for each channel",
            {"params": DenseCRFParams(bilateral_srgb=torch.ones(2))},
        ),
    ],
)  # fmt: skip
def test_errors_name_the_argument(
    target: Target, error: type[Exception], match: str, change: dict[str, Any]
) -> None:
    unary, image = scene(6, 8, 3, target.device)
    moved = {
        name: value.to(target.device) if isinstance(value, Tensor) else value
        for name, value in change.items()
    }
    with pytest.raises(error, match=match):
        target.functions.dense_crf(**{"unary": unary, "image": image, **moved})


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (TypeError, {"gaussian_sxy": True}),
        (TypeError, {"gaussian_sxy": np.bool_(True)}),
        (TypeError, {"bilateral_sxy": (1, True)}),
        (TypeError, {"bilateral_sxy": (1, "2")}),
        (ValueError, {"bilateral_sxy": (1, 0)}),
        (ValueError, {"bilateral_sxy": ()}),
        (ValueError, {"bilateral_srgb": torch.tensor([1.0, -1.0])}),
        (ValueError, {"bilateral_srgb": torch.tensor(torch.nan, requires_grad=True)}),
        (ValueError, {"bilateral_srgb": torch.ones(2, 2)}),
        (TypeError, {"bilateral_srgb": torch.ones(2, dtype=torch.bool)}),
        (TypeError, {"gaussian_weight": True}),
        (TypeError, {"gaussian_weight": np.bool_(False)}),
        (ValueError, {"gaussian_weight": np.float32(np.inf)}),
        (ValueError, {"gaussian_weight": -1e39}),
        (ValueError, {"bilateral_sxy": 10**400}),
        (ValueError, {"bilateral_srgb": (1.0, 1e39)}),
    ],
)
def test_bad_parameters(error: type[Exception], change: dict[str, Any]) -> None:
    with pytest.raises(error, match=next(iter(change))):
        DenseCRFParams(**change)


def test_numpy_numbers() -> None:
    unary, image = scene(6, 8, 3)
    params = DenseCRFParams(
        np.float32(2), np.int64(1), np.arange(4, 9)[0], np.array(25), np.float16(2)
    )
    assert params == PARAMS
    assert all(type(getattr(params, name)) is float for name in dense_crf_lattices.WIDTHS)
    wanted = dense_crf(unary, image, PARAMS, 3)
    assert torch.equal(dense_crf(unary, image, params, np.int64(3)), wanted)  # type: ignore[arg-type]
    fixed = DenseCRFParams(torch.tensor(2), 1.0, torch.tensor([4.0, 4]), torch.tensor(25.0), 2.0)
    assert fixed.bilateral_sxy == (4.0, 4.0)
    assert torch.equal(dense_crf(unary, image, fixed, 3), wanted)


def test_learnt_widths_are_one_for_each_axis() -> None:
    unary, image = scene(6, 8, 3)
    params = DenseCRFParams(bilateral_sxy=torch.ones(3, requires_grad=True))
    with pytest.raises(ValueError, match="bilateral_sxy: got 3 widths, must be one number or 2"):
        dense_crf(unary, image, params)


def warnings_of(image: Tensor, params: DenseCRFParams = PARAMS) -> list[str]:
    unary = torch.zeros(image.shape[0], 2, *image.shape[2:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dense_crf(unary, image, params, 1)
        dense_crf(unary, image, params, 1)
    return [str(warning.message) for warning in caught]


def test_images_in_other_units_warn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_image_checks, "_warned", set())
    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert warnings_of(255 * image) == []
    assert warnings_of(torch.zeros(1, 3, 4, 5)) == []
    assert warnings_of((image > 0.5).to(torch.uint8)) == []
    assert warnings_of(image, DenseCRFParams(bilateral_srgb=0.1)) == []
    (within,) = warnings_of(image)
    assert "values within 0..1" in within
    assert "0..255" in within
    mean, std = 123.675, 58.395  # of a normalisation in bfloat16, that is undone
    undone = ((255 * image.round() - mean) / std).bfloat16().float() * std + mean
    assert undone.min() < -0.1
    assert warnings_of(undone) == []
    (negative,) = warnings_of(2 * image - 1)
    assert "negative values" in negative
    assert warnings_of(image) == []


@pytest.mark.parametrize(
    ("low", "high", "srgb", "warns"),
    [
        (-2.1, 2.6, 13, True),  # less the mean and over the deviation
        (-2.1, 2.6, 3, True),
        (-1000, 3000, 50, False),  # Hounsfield units
        (-120, 150, 13, False),  # bytes less their mean
        (-100, 100, 5, False),  # Lab
    ],
)
def test_negative_values_warn_where_widths_are_too_large_for_them(
    monkeypatch: pytest.MonkeyPatch, low: float, high: float, srgb: float, warns: bool
) -> None:
    monkeypatch.setattr(_image_checks, "_warned", set())
    image = torch.linspace(low, high, 60).view(1, 3, 4, 5)
    assert len(warnings_of(image, DenseCRFParams(bilateral_srgb=srgb))) == warns


@pytest.mark.parametrize(("srgb", "warns"), [(1.0, True), (0.99, False), ((5, 0.5, 5), False)])
def test_units_at_the_border_of_what_warns(
    monkeypatch: pytest.MonkeyPatch, srgb: float | tuple[float, ...], warns: bool
) -> None:
    """An image of 0 and 1 under kernels of about 1."""
    monkeypatch.setattr(_image_checks, "_warned", set())
    image = (torch.arange(60) % 2).float().view(1, 3, 4, 5)
    assert len(warnings_of(image, DenseCRFParams(bilateral_srgb=srgb))) == warns
    monkeypatch.setattr(_image_checks, "_warned", set())
    assert warnings_of(1.01 * image, DenseCRFParams(bilateral_srgb=srgb)) == []


@pytest.mark.parametrize("call", ["dense_crf", "DenseCRF", "DenseCRFLattices", "dense_crf_loss"])
def test_warnings_name_the_line_of_the_caller(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(_image_checks, "_warned", set())
    image, unary = torch.rand(1, 3, 4, 5), torch.ones(1, 2, 4, 5)
    calls: dict[str, Callable[[], object]] = {
        "dense_crf": lambda: dense_crf(unary, image),
        "DenseCRF": lambda: DenseCRF(2)(unary, image),
        "DenseCRFLattices": lambda: DenseCRFLattices.build(image, DenseCRFParams()),
        "dense_crf_loss": lambda: dense_crf_loss(unary, image),
    }
    with pytest.warns(UserWarning, match=r"image: got values within 0\.\.1") as caught:
        calls[call]()
    assert [warning.filename for warning in caught] == [__file__]


def test_negative_values_beyond_rounding_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.full((1, 3, 4, 5), 20.0)
    for low, count in ((-0.19, 0), (-0.21, 1)):
        monkeypatch.setattr(_image_checks, "_warned", set())
        image[0, 0, 0, 0] = low
        assert len(warnings_of(image)) == count


def test_learnt_widths_warn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_image_checks, "_warned", set())
    learnt = torch.tensor(13.0, requires_grad=True)
    assert len(warnings_of(torch.rand(1, 3, 4, 5), DenseCRFParams(bilateral_srgb=learnt))) == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_images_that_are_not_finite(bad: float) -> None:
    unary, image = scene(6, 8, 3)
    floating = image.float()
    floating[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="image: got NaN or infinite"):
        dense_crf(unary, floating)


def test_images_of_more_pixels_than_a_lattice_takes() -> None:
    """Before anything of their size is made."""
    image = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, 20000, 20000)
    values = torch.zeros(1, 2, 1, 1).expand(1, 2, 20000, 20000)
    calls: list[Callable[[], object]] = [
        lambda: dense_crf(values, image),
        lambda: DenseCRFLattices.build(image, DenseCRFParams()),
        lambda: dense_crf_loss(values, image),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="image: got 400000000 pixels, must be at most 357913"):
            call()


def test_kernels_too_narrow_for_an_image() -> None:
    unary, image = scene(6, 8, 3)
    with pytest.raises(ValueError, match=r"gaussian_sxy: .*widen the kernel"):
        dense_crf(unary, image, DenseCRFParams(gaussian_sxy=1e-6))
    with pytest.raises(ValueError, match=r"bilateral_sxy, bilateral_srgb: .*widen the kernel"):
        dense_crf(unary, image, DenseCRFParams(bilateral_srgb=1e-6))
