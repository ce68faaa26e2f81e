"""The dense CRF behind a model: its settings, and the step from nodes to pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_run import write_run

from deepcrf_ext import DenseCRFParams, InputError
from deepcrf_ext.models.refine import DenseCRFSettings, refine
from deepcrf_ext.ops.dense_crf_params import PRESETS
from deepcrf_ext.records.checkpoint import load_model


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Marginals [2, 3, 4, 5] and images [2, 3, 21, 26]."""
    generator = torch.Generator().manual_seed(0)
    marginals = torch.randn(2, 3, 4, 5, generator=generator).softmax(1)
    image = torch.randint(256, (2, 3, 21, 26), generator=generator, dtype=torch.uint8)
    return marginals, image


def test_marginals_of_pixels() -> None:
    marginals, image = problem()
    result = refine(marginals, image)
    assert result.shape == (2, 3, 21, 26)
    torch.testing.assert_close(result.sum(1), torch.ones(2, 21, 26))
    torch.testing.assert_close(refine(marginals, image.float()), result)
    settings = DenseCRFSettings(PRESETS["deeplab"], iterations=4)
    assert not torch.allclose(refine(marginals, image, settings), result, atol=0.01)


def test_without_iterations_it_only_upsamples() -> None:
    marginals, image = problem()
    pixels = torch.nn.functional.interpolate(marginals, (21, 26), mode="bilinear")
    torch.testing.assert_close(refine(marginals, image, DenseCRFSettings(iterations=0)), pixels)


def test_too_narrow_for_the_image_is_the_users_error() -> None:
    marginals, image = problem()
    with pytest.raises(InputError, match=r"dense CRF: .*widen the kernel"):
        refine(marginals, image, DenseCRFSettings(DenseCRFParams(bilateral_sxy=1e-6)))


def test_row_full_of_a_model_needs_the_images_size(tmp_path: Path) -> None:
    model, _, _ = load_model(write_run(tmp_path / "run", tmp_path / "data"))
    images = torch.rand(1, 3, 20, 30) * 255
    settings = DenseCRFSettings(iterations=2)
    with torch.no_grad():
        nodes = model.marginals(model.energies(images), "full")
        result = model.predict(images, "full", (20, 30), settings)
        assert torch.equal(result, refine(nodes, images, settings))
        with pytest.raises(
            ValueError, match=r"size: got \(10, 15\), must be the images', .* with a dense CRF"
        ):
            model.predict(images, "full", (10, 15))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("writer", [json.dumps, yaml.safe_dump])
def test_settings_come_back_from_a_file(
    tmp_path: Path, writer: Callable[[Any], str], encoding: str
) -> None:
    settings = DenseCRFSettings(DenseCRFParams(1, 2.5, 33, 7, 1e-5), iterations=7)
    path = tmp_path / "settings"
    path.write_text(writer(settings.as_dict()), encoding)
    assert DenseCRFSettings.read(path) == settings
    assert DenseCRFSettings.read(str(path)) == settings


def test_settings_by_name_and_in_part() -> None:
    for name, params in PRESETS.items():
        assert DenseCRFSettings.read(name) == DenseCRFSettings(params)
    part = DenseCRFSettings.read({"bilateral_sxy": 40, "iterations": 3})
    assert part == DenseCRFSettings(DenseCRFParams(bilateral_sxy=40), 3)
    widths = DenseCRFParams(bilateral_sxy=(40, 30), normalisation="after")
    settings = DenseCRFSettings(widths, np.int64(3))
    assert DenseCRFSettings.read(json.loads(json.dumps(settings.as_dict()))) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{gaussian: 3}", "'gaussian' is unknown, must be one of gaussian_sxy"),
        ("{compatibility: [[1]]}", "'compatibility' is unknown"),
        ("{bilateral_sxy: [1, 2, 3]}", "bilateral_sxy: got 3 widths, must be one number or 2"),
        ("{bilateral_srgb: [1, 2]}", "bilateral_srgb: got 2 widths, must be one number or 3"),
        ("{gaussian_sxy: 0}", "gaussian_sxy: got 0, must be positive"),
        ("{bilateral_weight: much}", "bilateral_weight: got str"),
        ("{iterations: 2.5}", "iterations: got float, must be an int"),
        ("{iterations: -1}", "iterations: got -1, must be at least 0"),
        ("[1, 2]", "must hold some of"),
        ("{a: [", "not YAML"),
        ("{iterations: 2, iterations: 3}", "the key 'iterations' is there twice"),
        ("", "must hold some of"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        DenseCRFSettings.read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["densenet", "", "missing/file.yaml"])
def test_neither_preset_nor_file(source: Any) -> None:
    with pytest.raises(InputError, match="neither a file nor one of pydensecrf, convcrf, deeplab"):
        DenseCRFSettings.read(source)
