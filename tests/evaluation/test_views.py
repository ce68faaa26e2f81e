"""Flip and multi-scale testing, against every view by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.data import open_dataset, to_tensors
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.evaluation import before_and_after, evaluate
from deepcrf_ext.evaluation.prediction import predict_image
from deepcrf_ext.evaluation.regions import SegmentationMetrics
from deepcrf_ext.evaluation.views import Views, average_views
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(run: Path) -> DeepCRF:
    return load_model(run)[0]


@torch.no_grad()
def marginals(model: DeepCRF, image: Tensor, name: str) -> Tensor:
    return model.marginals(model.energies(image), name)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(image, (height, width), mode="bilinear", antialias=True)


def grown(maps: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(maps, size, mode="bilinear")


def test_views_are_averaged_upright_on_the_largest_grid(model: DeepCRF) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    name = "1unary+2pair"
    plain = predict_image(model, picture, name, amp=False)
    once = predict_image(model, picture, name, amp=False, views=Views((1.0,)))
    np.testing.assert_array_equal(plain.marginals, once.marginals)

    flipped = predict_image(model, picture, name, amp=False, views=Views(flip=True))
    mirrored = marginals(model, image.flip(3), name).flip(3)
    expected = (marginals(model, image, name) + mirrored) / 2
    np.testing.assert_allclose(flipped.marginals, expected[0], rtol=1e-5, atol=1e-7)
    assert not np.allclose(flipped.marginals, plain.marginals, atol=1e-4)

    both = predict_image(model, picture, name, amp=False, views=Views((0.5, 1.5), True))
    small, large = resized(image, 20, 26), resized(image, 60, 78)
    parts = [marginals(model, large, name), marginals(model, large.flip(3), name).flip(3)]
    size = parts[0].shape[2:]
    parts.append(grown(marginals(model, small, name), size))
    parts.append(grown(marginals(model, small.flip(3), name).flip(3), size))
    mean = torch.stack(parts).mean(0)
    np.testing.assert_allclose(both.marginals, mean[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(both.labels, grown(mean, picture.shape[:2])[0].argmax(0))


def test_flipping_a_symmetric_view_changes_nothing(model: DeepCRF) -> None:
    """Two views that are each other's mirror images give the same average either way round."""
    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    views = Views(flip=True)
    one = predict_image(model, picture, "unary-3scales", amp=False, views=views)
    other = predict_image(model, picture[:, ::-1], "unary-3scales", amp=False, views=views)
    np.testing.assert_allclose(one.marginals, other.marginals[..., ::-1], rtol=1e-4, atol=1e-6)


def test_evaluation_measures_what_prediction_gives(run: Path, model: DeepCRF) -> None:
    dataset = open_dataset("camvid", run.parent / "camvid", "val")
    views = Views((0.75, 1.25), True)
    variants = before_and_after(model)
    result = evaluate(model, dataset, variants, amp=False, boundaries=False, views=views)
    for name in variants:
        expected = SegmentationMetrics(model.num_classes)
        for sample in dataset:
            found = predict_image(model, sample.image, name, amp=False, views=views)
            expected.update(torch.from_numpy(found.labels), to_tensors(sample)[1])
        np.testing.assert_array_equal(result.scores[name].confusion, expected.compute().confusion)


def test_images_of_a_pixel_and_of_extreme_scales(model: DeepCRF) -> None:
    picture = np.full((1, 3, 3), 90, np.uint8)
    views = Views((0.01, 3.0), True)
    prediction = predict_image(model, picture, "1unary+2pair", amp=False, views=views)
    assert prediction.labels.shape == (1, 3)
    np.testing.assert_allclose(prediction.marginals.sum(0), 1, rtol=1e-5)


def test_average_of_one_is_itself_and_probabilities_stay_so() -> None:
    one = torch.rand(1, 3, 4, 5).softmax(1)
    assert average_views([one]) is one
    mean = average_views([one, torch.rand(1, 3, 7, 6).softmax(1)])
    assert mean.shape == (1, 3, 7, 6)
    torch.testing.assert_close(mean.sum(1), torch.ones(1, 7, 6))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_bad_scales(scales: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="scales: got"):
        Views(scales)
